"""Token buckets for rate limits. Each user, network address or other key has a bucket of its own.

A bucket of `burst_count` tokens refills by `per_second` tokens a second. Only the time when it will
be full again is stored (GCRA), so a full bucket needs no memory.
"""

from collections.abc import Callable
from typing import Final

import msgspec

CLOCK_TOLERANCE: Final = 1e-5
"""In seconds. An action may come earlier by less than this: the wait that we report is rounded to
milliseconds, and clocks are no more exact."""
MAX_BUCKETS: Final = 100_000
"""Beyond it the buckets that are nearest to full are evicted."""


class Rate(msgspec.Struct, frozen=True):
    """`per_second` actions in the long run, and `burst_count` actions in a burst. Both are
    positive."""

    per_second: float
    burst_count: float

    def __post_init__(self) -> None:
        if self.per_second <= 0 or self.burst_count < 1:
            raise ValueError("a rate limit needs per_second above 0 and burst_count of at least 1")


class TokenBuckets:
    """The buckets of one limit. Use this class only on the reactor thread."""

    def __init__(
        self, *, now: Callable[[], float], rate: Rate, max_buckets: int = MAX_BUCKETS
    ) -> None:
        """`now`: a clock, in seconds."""
        self._now = now
        self._rate = rate
        self._max_buckets = max_buckets
        self._full_at: dict[str, float] = {}
        """No `LRU`: the fullest buckets are evicted, whenever they were used."""

    def __len__(self) -> int:
        """Return the number of stored buckets."""
        return len(self._full_at)

    def wait(self, key: str, cost: float = 1, *, rate: Rate | None = None) -> float:
        """Return the seconds until the bucket has this many tokens, or 0. `rate` replaces the usual
        one."""
        rate = rate or self._rate
        now = self._now()
        wait = (
            max(self._full_at.get(key, now) - now, 0) + (cost - rate.burst_count) / rate.per_second
        )
        return wait if wait > CLOCK_TOLERANCE else 0

    def count_tokens(self, key: str) -> int:
        """Return the number of whole tokens in the bucket."""
        if self.wait(key):
            return 0
        now = self._now()
        missing = max(self._full_at.get(key, now) - now, 0) * self._rate.per_second
        return max(int(self._rate.burst_count - missing), 1)

    def take(self, key: str, cost: float = 1, *, rate: Rate | None = None) -> None:
        """Take tokens. If it has too few, the next wait is longer."""
        now = self._now()
        self._full_at[key] = (
            max(self._full_at.get(key, now), now) + cost / (rate or self._rate).per_second
        )
        if len(self._full_at) > self._max_buckets:
            self._evict_fullest(now)

    def refund(self, key: str, cost: float = 1) -> None:
        """Put tokens back."""
        if key in self._full_at:  # else it is full already
            self._full_at[key] -= cost / self._rate.per_second

    def fill(self, key: str) -> None:
        """Fill a bucket."""
        self._full_at.pop(key, None)

    def _evict_fullest(self, now: float) -> None:
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        limit = self._max_buckets // 2
        if len(self._full_at) > limit:
            self._full_at = dict(sorted(self._full_at.items(), key=lambda item: item[1])[-limit:])
