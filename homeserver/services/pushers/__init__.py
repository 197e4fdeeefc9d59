"""Notifies people about missed messages: by push gateways and by e-mail."""
