"""Pushers: push notifications through gateways, and e-mails about missed messages."""
