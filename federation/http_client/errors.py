"""What may go wrong between us and a server that is asked."""

from twisted.internet.defer import CancelledError


class OutboundError(Exception):
    """No whole answer came. `retryable`: it may come if the same is asked later. `status`: of the
    answer whose head came, if one did."""

    def __init__(self, text: str, *, retryable: bool = True, status: int | None = None) -> None:
        super().__init__(text)
        self.retryable = retryable
        self.status = status


class TooLong(OutboundError):
    """The answer is longer than was to be read."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text, retryable=False, status=status)


class ConnectionGone(OutboundError):
    """The connection ended before the first byte of the answer: a request may not even have been
    seen."""


class CutOff(CancelledError):
    """Nobody waits any longer for the answer, whose head has come, with this status."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status
