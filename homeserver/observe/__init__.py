"""Observes a running server: request context, logs and metrics."""
