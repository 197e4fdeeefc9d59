"""Bounds how hard one server may press with requests, so that a busy or hostile one delays only
itself.

A server has a number of requests answered at the same time; further ones wait. Once it has sent
more than a number of requests in a window, each further one is delayed. Once too many of its
requests wait, further ones are refused (429).

spec: client-server-api#rate-limiting
"""

import sys
from collections import deque
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from federation.peers.fair_semaphore import FairSemaphore
from federation.protocol.errors import LimitExceeded
from federation.protocol.ids import ServerName

MAX_REMEMBERED: Final = 5_000
"""Servers whose requests are counted. Beyond that, idle ones are forgotten."""


class PeerLimits(msgspec.Struct, frozen=True):
    """The bounds for one server. Times are in seconds."""

    window: float
    asks_in_window: int
    """Further requests in the window are delayed."""
    delay: float
    most_waiting: int
    at_once: int


class _Peer(msgspec.Struct):
    asked: deque[float] = msgspec.field(default_factory=deque)
    """The times of the latest requests, as many as matter."""
    delayed: int = 0


class PeerQueue:
    """Admits requests of other servers. A `leave` follows each `enter` that returns."""

    def __init__(self, clock: IReactorTime, limits: PeerLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._semaphore: FairSemaphore[ServerName] = FairSemaphore(sys.maxsize, limits.at_once)
        self._peers: dict[ServerName, _Peer] = {}

    async def enter(self, server: ServerName) -> None:
        """Wait until the request may be answered. Raises LimitExceeded."""
        limits = self._limits
        peer = self._peers.get(server)
        if peer is None:
            if len(self._peers) >= MAX_REMEMBERED:
                self._forget()
            peer = self._peers[server] = _Peer()
        if peer.delayed + self._semaphore.waiting(server) >= max(limits.most_waiting, 1):
            raise LimitExceeded(retry_after_ms=max(1, int(limits.window * 1000)))
        now = self._clock.seconds()
        asked = peer.asked
        asked.append(now)
        while asked and (asked[0] <= now - limits.window or len(asked) > limits.asks_in_window + 1):
            asked.popleft()
        if len(asked) > limits.asks_in_window and limits.delay > 0:
            peer.delayed += 1
            try:
                await deferLater(self._clock, limits.delay)
            finally:
                peer.delayed -= 1
        await self._semaphore.acquire(server)

    def leave(self, server: ServerName) -> None:
        """The request is answered; the next one of the server is admitted."""
        self._semaphore.release(server)

    def count_remembered(self) -> int:
        """How many servers are known."""
        return len(self._peers)

    def _forget(self) -> None:
        since = self._clock.seconds() - self._limits.window
        for server, peer in list(self._peers.items()):
            is_idle = not (
                peer.delayed or self._semaphore.waiting(server) or self._semaphore.held(server)
            )
            if is_idle and (not peer.asked or peer.asked[-1] <= since):
                del self._peers[server]
