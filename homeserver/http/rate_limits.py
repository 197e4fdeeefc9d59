"""Rate limits: token buckets, one number for each.

A bucket of `burst_count` tokens refills by `per_second`. Only the time when it will be full again
is kept (GCRA), so a bucket that is full needs no memory, and an unlimited action costs one lookup.
Addresses of IPv6 count by their /64.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import LimitExceeded
from homeserver.api.limits import Limit

TOO_SOON: Final = 1e-5
"""In seconds: whoever comes less early than that has waited as they were told, in milliseconds, and
by times that are no more exact."""
MAX_BUCKETS: Final = 100_000
"""For one limit; past it, buckets that are nearest to full are forgotten."""


class Rate(msgspec.Struct, frozen=True):
    """`per_second` actions in the long run, `burst_count` at once. Both are more than nothing."""

    per_second: float
    burst_count: float

    def __post_init__(self) -> None:
        if self.per_second <= 0 or self.burst_count < 1:
            raise ValueError("a rate limit needs per_second above 0 and burst_count of at least 1")


class Counted(NamedTuple):
    """A bucket, and how much of it something takes."""

    limit: Limit
    key: str
    cost: float = 1.0


class Attempt:
    """Something that may fail."""

    has_failed = False

    def fail(self) -> None:
        """It did."""
        self.has_failed = True


class RateLimiter:
    """Counts actions. A limit that has no rate is none."""

    def __init__(
        self, clock: IReactorTime, rates: Mapping[Limit, Rate], *, max_buckets: int = MAX_BUCKETS
    ) -> None:
        self._clock = clock
        self._rates = dict(rates)
        self._max_buckets = max_buckets
        self._full_at: dict[Limit, dict[str, float]] = {limit: {} for limit in rates}

    def has_rate(self, limit: Limit) -> bool:
        """Whether there is such a limit."""
        return limit in self._rates

    def check(self, limit: Limit, key: str, *, cost: float = 1, rate: Rate | None = None) -> None:
        """Count an action, or raise `LimitExceeded`. What is refused does not count. `rate`
        replaces the usual one."""
        self._take(limit, key, cost, cost, rate)

    def check_only(self, limit: Limit, key: str, *, rate: Rate | None = None) -> None:
        """Raise `LimitExceeded` if an action would, but count nothing: for what counts only when it
        fails."""
        self._take(limit, key, 1, 0, rate)

    def check_then_count(self, limit: Limit, key: str, cost: float) -> None:
        """Raise `LimitExceeded` if an action would; else count it as so many, though it be more
        than there is room for: so it may always be made, and the next one waits the longer."""
        self._take(limit, key, 1, cost)

    @contextmanager
    def counting(self, limit: Limit, key: str) -> Iterator[None]:
        """Count an action that may fail yet: then it does not count, whatever it raises. Raises
        LimitExceeded."""
        self.check(limit, key)
        try:
            yield
        except BaseException:
            self.give_back(limit, key)
            raise

    @contextmanager
    def counting_failures(self, limit: Limit, key: str) -> Iterator[None]:
        """Count an action, unless it succeeds in the end: until then it counts, so that whatever is
        under way does. Raises LimitExceeded."""
        self.check(limit, key)
        yield
        self.give_back(limit, key)

    @contextmanager
    def attempting(self, counted: Sequence[Counted]) -> Iterator[Attempt]:
        """Count an attempt, in all of these buckets or in none, before it is known how it ends:
        whatever is under way counts. Unless it is said to have failed, all is given back at the
        end, whatever is raised. Raises LimitExceeded."""
        for limit, key, cost in counted:
            self._take(limit, key, cost, 0)
        for limit, key, cost in counted:
            self._take(limit, key, cost, cost)
        attempt = Attempt()
        try:
            yield attempt
        finally:
            if not attempt.has_failed:
                for limit, key, cost in counted:
                    self.give_back(limit, key, cost)

    def count(self, limit: Limit, key: str, *, cost: float = 1, rate: Rate | None = None) -> None:
        """Count what has happened already, though it be more than there was room for: for what is
        known only then."""
        self._take(limit, key, None, cost, rate)

    def _take(
        self, limit: Limit, key: str, asked: float | None, taken: float, rate: Rate | None = None
    ) -> None:
        """Take so much, where there is room for what is asked. Else raises `LimitExceeded`; None:
        there always is."""
        rate = rate or self._rates.get(limit)
        if rate is None:
            return
        buckets = self._full_at.setdefault(limit, {})
        now = self._clock.seconds()
        full_at = max(buckets.get(key, now), now)
        if asked is not None:
            wait = full_at - now + (asked - rate.burst_count) / rate.per_second
            if wait > TOO_SOON:
                raise LimitExceeded(retry_after_ms=max(1, int(wait * 1000 + 0.999)))
        if taken:
            buckets[key] = full_at + taken / rate.per_second
            if len(buckets) > self._max_buckets:
                self._forget(limit, now)

    def give_back(self, limit: Limit, key: str, cost: float = 1.0) -> None:
        """What was counted is not to count after all."""
        buckets = self._full_at.get(limit, {})
        if key in buckets:  # else it is full already
            buckets[key] -= cost / self._rates[limit].per_second

    def forget(self, limit: Limit, key: str) -> None:
        """Fill a bucket: after a good password, failures before it no longer count."""
        self._full_at.get(limit, {}).pop(key, None)

    def _forget(self, limit: Limit, now: float) -> None:
        buckets = {key: full_at for key, full_at in self._full_at[limit].items() if full_at > now}
        if len(buckets) > self._max_buckets // 2:
            emptiest = sorted(buckets.items(), key=lambda item: item[1])[
                -(self._max_buckets // 2) :
            ]
            buckets = dict(emptiest)
        self._full_at[limit] = buckets

    def bucket_count(self, limit: Limit) -> int:
        """How many buckets are remembered."""
        return len(self._full_at.get(limit, {}))


def address_key(address: str) -> str:
    """What an address counts as: itself, or the /64 of IPv6, which is what one subscriber has."""
    if ":" not in address:
        return address
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return (
        str(IPv6Network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else address
    )
