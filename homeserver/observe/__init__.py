"""What can be seen of a running server: the context of a request, logs, metrics."""
