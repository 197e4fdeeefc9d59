"""Computes pauses between retries, which grow by a factor up to a limit."""

from typing import Final

import msgspec

_MAX_EXPONENT: Final = 60
"""At this exponent every schedule has reached its longest pause."""


class BackoffSchedule(msgspec.Struct, frozen=True):
    """Pauses that grow by a factor, in milliseconds."""

    first_ms: int
    max_ms: int
    factor: float = 2

    def after(self, backoff_ms: float) -> int:
        """Return the pause after one of this length, or the first one after 0."""
        return min(max(int(backoff_ms * self.factor), self.first_ms), self.max_ms)

    def nth(self, failures: int) -> int:
        """Return the pause after this number of consecutive failures, from 1."""
        return int(
            min(self.first_ms * self.factor ** min(failures - 1, _MAX_EXPONENT), self.max_ms)
        )
