"""What may go wrong between us and a server that is asked."""


class OutboundError(Exception):
    """No whole answer came. `retryable`: it may come if the same is asked later."""

    def __init__(self, text: str, *, retryable: bool = True) -> None:
        super().__init__(text)
        self.retryable = retryable


class TooLong(OutboundError):
    """The answer is longer than was to be read."""

    def __init__(self, text: str) -> None:
        super().__init__(text, retryable=False)


class ConnectionGone(OutboundError):
    """The connection ended before the first byte of the answer: a request may not even have been seen."""
