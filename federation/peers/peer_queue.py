"""Limits the requests from each remote server, so that a busy or hostile one delays only itself.

A limited number of requests from one server is served concurrently, and further ones wait. If a
server sends more requests in a time window than allowed, the excess ones are delayed. If too many
of its requests wait or are delayed, further ones are refused (429).

spec: client-server-api#rate-limiting
"""

import sys
from collections import Counter
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from federation.peers.fair_semaphore import FairSemaphore
from federation.peers.token_buckets import Rate, TokenBuckets
from federation.protocol.errors import LimitExceeded
from federation.protocol.ids import ServerName

MAX_COUNTED: Final = 5_000
"""Servers whose requests are counted."""


class PeerLimits(msgspec.Struct, frozen=True):
    """The limits for one server. Times are in seconds."""

    window: float
    requests_per_window: int
    """Further requests are delayed until the server sends fewer. 0: each request is delayed."""
    delay: float
    max_waiting: int
    max_concurrent: int


class PeerQueue:
    """Admits requests of other servers. After each successful `enter`, call `leave`."""

    def __init__(self, *, clock: IReactorTime, limits: PeerLimits) -> None:
        self._clock = clock
        self._limits = limits
        requests = max(limits.requests_per_window, 1)
        rate = Rate(requests / limits.window, requests)  # a bucket refills in a window
        self._buckets = TokenBuckets(now=clock.seconds, rate=rate, max_buckets=MAX_COUNTED)
        self._delayed: Counter[ServerName] = Counter()
        self._semaphore: FairSemaphore[ServerName] = FairSemaphore(
            permits=sys.maxsize, permits_per_key=limits.max_concurrent
        )

    async def enter(self, server: ServerName) -> None:
        """Wait until the request may be served. Raises LimitExceeded."""
        if self._delayed[server] + self._semaphore.waiting(server) >= max(
            self._limits.max_waiting, 1
        ):
            raise LimitExceeded(retry_after_ms=max(1, int(self._limits.window * 1000)))
        if self._exceeds_rate(server) and self._limits.delay > 0:
            await self._delay(server)
        await self._semaphore.acquire(server)

    def leave(self, server: ServerName) -> None:
        """Release the slot of a served request and admit the next one."""
        self._semaphore.release(server)

    def count_servers(self) -> int:
        """Return the number of servers whose requests are counted."""
        return len(self._buckets)

    def _exceeds_rate(self, server: ServerName) -> bool:
        """Count a request, and return whether it exceeds the rate.

        Delayed requests count too, up to those of a window. So a server that continues is delayed
        each time.
        """
        wait = self._buckets.wait(server)
        if wait < self._limits.window:
            self._buckets.take(server)
        return wait > 0 or not self._limits.requests_per_window

    async def _delay(self, server: ServerName) -> None:
        self._delayed[server] += 1
        try:
            await deferLater(self._clock, self._limits.delay)
        finally:
            self._delayed -= Counter({server: 1})
