"""The rate limits of the configuration: token buckets for each limit.

An action without a limit costs one lookup. Addresses of IPv6 count by their /64.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from twisted.internet.interfaces import IReactorTime

from federation.peers.token_buckets import MAX_BUCKETS, Rate, TokenBuckets
from federation.protocol.errors import LimitExceeded
from homeserver.api.limits import Limit


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
        self._max_buckets = max_buckets
        self._limited = frozenset(rates)
        self._buckets = {limit: self._make_buckets(rate) for limit, rate in rates.items()}

    def has_rate(self, limit: Limit) -> bool:
        """Whether there is such a limit."""
        return limit in self._limited

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

    def room(self, limit: Limit, key: str) -> int:
        """How many actions could be counted now; without a limit, any number."""
        buckets = self._buckets.get(limit)
        return sys.maxsize if buckets is None else buckets.room(key)

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
        """Take tokens, where there is room for those that are asked. Else raises `LimitExceeded`;
        None: there always is."""
        buckets = self._buckets.get(limit)
        if buckets is None:
            if rate is None:
                return
            buckets = self._buckets[limit] = self._make_buckets(rate)
        if asked is not None and (wait := buckets.wait(key, asked, rate=rate)):
            raise LimitExceeded(retry_after_ms=max(1, int(wait * 1000 + 0.999)))
        if taken:
            buckets.take(key, taken, rate=rate)

    def _make_buckets(self, rate: Rate) -> TokenBuckets:
        return TokenBuckets(self._clock.seconds, rate, max_buckets=self._max_buckets)

    def give_back(self, limit: Limit, key: str, cost: float = 1.0) -> None:
        """What was counted is not to count after all."""
        if (buckets := self._buckets.get(limit)) is not None:
            buckets.give_back(key, cost)

    def forget(self, limit: Limit, key: str) -> None:
        """Fill a bucket: after a good password, failures before it no longer count."""
        if (buckets := self._buckets.get(limit)) is not None:
            buckets.fill(key)

    def bucket_count(self, limit: Limit) -> int:
        """How many buckets are remembered."""
        return len(self._buckets.get(limit, ()))


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
