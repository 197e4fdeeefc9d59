"""Signing in with somebody else's word: identity providers and directories."""
