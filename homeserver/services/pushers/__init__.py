"""Pushers: telling people of what they would not want to miss, by push gateways and by e-mail."""
