"""Bounds how hard one server may press with requests, so that a busy or hostile one delays only
itself.

A number of requests of a server is answered at the same time; further ones wait. A server that
sends more often than so many times in a window has its requests delayed. Once too many of its
requests wait, further ones are refused (429).

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

MAX_REMEMBERED: Final = 5_000
"""Servers whose requests are counted."""


class PeerLimits(msgspec.Struct, frozen=True):
    """The bounds for one server. Times are in seconds."""

    window: float
    asks_in_window: int
    """Further requests are delayed until the server has sent less for a window. 0: each is."""
    delay: float
    most_waiting: int
    at_once: int


class PeerQueue:
    """Admits requests of other servers. A `leave` follows each `enter` that returns."""

    def __init__(self, clock: IReactorTime, limits: PeerLimits) -> None:
        self._clock = clock
        self._limits = limits
        asks = max(limits.asks_in_window, 1)
        rate = Rate(asks / limits.window, asks)  # a bucket refills in a window
        self._asked = TokenBuckets(clock.seconds, rate, max_buckets=MAX_REMEMBERED)
        self._delayed: Counter[ServerName] = Counter()
        self._semaphore: FairSemaphore[ServerName] = FairSemaphore(sys.maxsize, limits.at_once)

    async def enter(self, server: ServerName) -> None:
        """Wait until the request may be answered. Raises LimitExceeded."""
        if self._delayed[server] + self._semaphore.waiting(server) >= max(
            self._limits.most_waiting, 1
        ):
            raise LimitExceeded(retry_after_ms=max(1, int(self._limits.window * 1000)))
        if self._asks_too_often(server) and self._limits.delay > 0:
            await self._delay(server)
        await self._semaphore.acquire(server)

    def leave(self, server: ServerName) -> None:
        """The request is answered; the next one of the server is admitted."""
        self._semaphore.release(server)

    def count_remembered(self) -> int:
        """How many servers' requests are counted."""
        return len(self._asked)

    def _asks_too_often(self, server: ServerName) -> bool:
        """Count a request. Delayed ones count too, up to a window's worth, so that a server which
        goes on pressing is delayed each time."""
        wait = self._asked.wait(server)
        if wait < self._limits.window:
            self._asked.take(server)
        return wait > 0 or not self._limits.asks_in_window

    async def _delay(self, server: ServerName) -> None:
        self._delayed[server] += 1
        try:
            await deferLater(self._clock, self._limits.delay)
        finally:
            self._delayed -= Counter({server: 1})
