"""Compiles push rules, evaluates them on events, and counts unread messages."""
