"""Rate limits: token buckets, one for each key.

A bucket of `burst_count` tokens refills by `per_second`. Only the time when it will be full again
is kept (GCRA), so a full bucket needs no memory.
"""

from collections.abc import Callable
from typing import Final

import msgspec

TOO_SOON: Final = 1e-5
"""In seconds: an action that comes less early has waited as it was told to, in milliseconds and by
times that are no more exact."""
MAX_BUCKETS: Final = 100_000
"""Beyond that, the buckets that are nearest to full are forgotten."""


class Rate(msgspec.Struct, frozen=True):
    """`per_second` actions in the long run, `burst_count` at once. Both are more than nothing."""

    per_second: float
    burst_count: float

    def __post_init__(self) -> None:
        if self.per_second <= 0 or self.burst_count < 1:
            raise ValueError("a rate limit needs per_second above 0 and burst_count of at least 1")


class TokenBuckets:
    """The buckets of one limit. For the reactor thread."""

    def __init__(
        self, now: Callable[[], float], rate: Rate, *, max_buckets: int = MAX_BUCKETS
    ) -> None:
        """`now`: a clock, in seconds."""
        self._now = now
        self._rate = rate
        self._max_buckets = max_buckets
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        """How many buckets are remembered."""
        return len(self._full_at)

    def wait(self, key: str, cost: float = 1, *, rate: Rate | None = None) -> float:
        """The seconds until the bucket has this many tokens; 0 if it has. `rate` replaces the usual
        one."""
        rate = rate or self._rate
        now = self._now()
        wait = (
            max(self._full_at.get(key, now) - now, 0) + (cost - rate.burst_count) / rate.per_second
        )
        return wait if wait > TOO_SOON else 0

    def room(self, key: str) -> int:
        """How many whole tokens the bucket has."""
        if self.wait(key):
            return 0
        now = self._now()
        missing = max(self._full_at.get(key, now) - now, 0) * self._rate.per_second
        return max(int(self._rate.burst_count - missing), 1)

    def take(self, key: str, cost: float = 1, *, rate: Rate | None = None) -> None:
        """Take tokens, though they be more than there are: then the next wait is the longer."""
        now = self._now()
        self._full_at[key] = (
            max(self._full_at.get(key, now), now) + cost / (rate or self._rate).per_second
        )
        if len(self._full_at) > self._max_buckets:
            self._forget_fullest(now)

    def give_back(self, key: str, cost: float = 1) -> None:
        """Put tokens back that were taken."""
        if key in self._full_at:  # else it is full already
            self._full_at[key] -= cost / self._rate.per_second

    def fill(self, key: str) -> None:
        """Fill a bucket."""
        self._full_at.pop(key, None)

    def _forget_fullest(self, now: float) -> None:
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        kept = self._max_buckets // 2
        if len(self._full_at) > kept:
            self._full_at = dict(sorted(self._full_at.items(), key=lambda item: item[1])[-kept:])
