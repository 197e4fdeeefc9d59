"""Applies the configured rate limits, with token buckets for each limit.

If a limit is not configured, checking an action against it costs only one dictionary lookup. All
IPv6 addresses of one /64 network count as one address.
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
from homeserver.config.limits import LimitOptions, RateLimit


class CountedAction(NamedTuple):
    """A bucket, and the number of tokens that an action takes from it."""

    limit: Limit
    key: str
    cost: float = 1.0


class Attempt:
    """An action that may fail."""

    has_failed = False

    def fail(self) -> None:
        """Record that the action failed."""
        self.has_failed = True


class RateLimiter:
    """Counts actions against rate limits. A limit without a rate does not limit."""

    def __init__(
        self, *, clock: IReactorTime, rates: Mapping[Limit, Rate], max_buckets: int = MAX_BUCKETS
    ) -> None:
        self._clock = clock
        self._max_buckets = max_buckets
        self._limited = frozenset(rates)
        self._buckets = {limit: self._make_buckets(rate) for limit, rate in rates.items()}

    def has_rate(self, limit: Limit) -> bool:
        """Return whether the limit is configured."""
        return limit in self._limited

    def check(self, limit: Limit, key: str, *, cost: float = 1, rate: Rate | None = None) -> None:
        """Count an action, or raise `LimitExceeded` and count nothing. `rate` replaces the
        configured one."""
        self._take(limit, key, cost, cost, rate)

    def check_without_counting(self, limit: Limit, key: str, *, rate: Rate | None = None) -> None:
        """Raise `LimitExceeded` if an action would exceed the limit, but count nothing: for limits
        that count only failures."""
        self._take(limit, key, 1, 0, rate)

    def check_and_overdraw(self, limit: Limit, key: str, cost: float) -> None:
        """Raise `LimitExceeded` if the bucket is empty; otherwise count `cost`, even if it is more
        than the bucket holds. So a large action is always possible, and the next one waits
        longer."""
        self._take(limit, key, 1, cost)

    def count_allowed(self, limit: Limit, key: str) -> int:
        """Return how many actions the limit allows now; without a limit, any number."""
        buckets = self._buckets.get(limit)
        return sys.maxsize if buckets is None else buckets.count_tokens(key)

    @contextmanager
    def count_unless_failed(self, limit: Limit, key: str) -> Iterator[None]:
        """Count an action, and refund it if the body raises anything. Raises LimitExceeded."""
        self.check(limit, key)
        try:
            yield
        except BaseException:
            self.refund(limit, key)
            raise

    @contextmanager
    def count_unless_succeeded(self, limit: Limit, key: str) -> Iterator[None]:
        """Count an action, and refund it if it succeeds. Until then it counts, so concurrent
        attempts are limited too. Raises LimitExceeded."""
        self.check(limit, key)
        yield
        self.refund(limit, key)

    @contextmanager
    def attempt(self, counted: Sequence[CountedAction]) -> Iterator[Attempt]:
        """Count an attempt in all of these buckets or in none, before its outcome is known, so that
        concurrent attempts count. Refund it at the end, even after an exception, unless
        `Attempt.fail` was called. Raises LimitExceeded."""
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
                    self.refund(limit, key, cost)

    def count(self, limit: Limit, key: str, *, cost: float = 1, rate: Rate | None = None) -> None:
        """Count an action that has already happened, even if it exceeds the limit."""
        self._take(limit, key, None, cost, rate)

    def _take(
        self,
        limit: Limit,
        key: str,
        required: float | None,
        tokens: float,
        rate: Rate | None = None,
    ) -> None:
        """Take `tokens` tokens. Raises `LimitExceeded` if fewer than `required` are left; None
        requires nothing."""
        buckets = self._buckets.get(limit)
        if buckets is None:
            if rate is None:
                return
            buckets = self._buckets[limit] = self._make_buckets(rate)
        if required is not None and (wait := buckets.wait(key, required, rate=rate)):
            raise LimitExceeded(retry_after_ms=max(1, int(wait * 1000 + 0.999)))
        if tokens:
            buckets.take(key, tokens, rate=rate)

    def _make_buckets(self, rate: Rate) -> TokenBuckets:
        return TokenBuckets(now=self._clock.seconds, rate=rate, max_buckets=self._max_buckets)

    def refund(self, limit: Limit, key: str, cost: float = 1.0) -> None:
        """Refund a counted action."""
        if (buckets := self._buckets.get(limit)) is not None:
            buckets.refund(key, cost)

    def reset(self, limit: Limit, key: str) -> None:
        """Fill the bucket: a successful login clears earlier failures."""
        if (buckets := self._buckets.get(limit)) is not None:
            buckets.fill(key)

    def bucket_count(self, limit: Limit) -> int:
        """Return the number of buckets in memory."""
        return len(self._buckets.get(limit, ()))


def read_rates(limits: LimitOptions) -> Mapping[Limit, Rate]:
    """Return the rate of each configured limit. A limit is named by the path of its option."""
    rates = {}
    for limit in Limit:
        found: object = limits
        for step in limit.value.split("."):
            found = getattr(found, step, None)
        if isinstance(found, RateLimit):
            rates[limit] = Rate(found.per_second, found.burst_count)
    return rates


def address_key(address: str) -> str:
    """Return the key by which an address counts: itself, or the /64 of IPv6, which one subscriber
    has."""
    if ":" not in address:
        return address
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return (
        str(IPv6Network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else address
    )
