"""Errors of requests to other machines."""

from twisted.internet.defer import CancelledError


class OutboundError(Exception):
    """No complete response was received.

    `retryable`: the same request may succeed later. `status`: of the response, if its head was
    received.
    """

    def __init__(self, text: str, *, retryable: bool = True, status: int | None = None) -> None:
        super().__init__(text)
        self.retryable = retryable
        self.status = status


class ResponseTooLong(OutboundError):
    """The response is longer than the limit."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text, retryable=False, status=status)


class ConnectionGone(OutboundError):
    """The connection ended before the first byte of the response. The server may not have seen the
    request."""


class CancelledResponse(CancelledError):
    """The request was cancelled after the head of the response was received, with this status."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status
