"""What may go wrong between us and a server that is asked."""


class OutboundError(Exception):
    """No whole answer came. `retryable`: it may come if the same is asked later."""

    def __init__(self, text: str, *, retryable: bool = True) -> None:
        super().__init__(text)
        self.retryable = retryable


class TooLong(OutboundError):
    """The answer, which has this status, is longer than was to be read."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text, retryable=False)
        self.status = status


class ConnectionGone(OutboundError):
    """The connection ended before the first byte of the answer: a request may not even have been seen."""
