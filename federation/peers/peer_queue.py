"""Requests of other servers by turns, so that a busy or hostile one cannot take the room of the
rest.

Each server has so many requests answered at the same time, and the rest of its requests wait in
line. One that asks more often than so many times in a window waits a while before each further
request; one that has too many waiting is refused (429). Servers do not wait for one another.

spec: client-server-api#rate-limiting
"""

from collections import deque

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import LimitExceeded
from federation.protocol.ids import ServerName

MAX_REMEMBERED = 5_000
"""Servers that are known before those are forgotten that have asked nothing lately."""


class PeerLimits(msgspec.Struct, frozen=True):
    """How hard one server may press. Times in seconds."""

    window: float
    asks_in_window: int
    """Before each further request waits for `delay`."""
    delay: float
    most_waiting: int
    at_once: int


class _Peer(msgspec.Struct):
    asked: deque[float] = msgspec.field(default_factory=deque)
    """When the latest requests came, as many as matter."""
    delayed: int = 0
    line: deque[Deferred[None]] = msgspec.field(default_factory=deque)
    running: int = 0


class Turns:
    """Lets requests in. Each `enter` that returns is followed by a `leave`."""

    def __init__(self, clock: IReactorTime, limits: PeerLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._peers: dict[ServerName, _Peer] = {}

    async def enter(self, server: ServerName) -> None:
        """Wait for a turn. Raises LimitExceeded where too many requests of the server wait
        already."""
        limits = self._limits
        peer = self._peers.get(server)
        if peer is None:
            if len(self._peers) >= MAX_REMEMBERED:
                self._forget()
            peer = self._peers[server] = _Peer()
        if peer.delayed + len(peer.line) >= max(limits.most_waiting, 1):
            raise LimitExceeded(retry_after_ms=max(1, int(limits.window * 1000)))
        now = self._clock.seconds()
        asked = peer.asked
        asked.append(now)
        while asked and (asked[0] <= now - limits.window or len(asked) > limits.asks_in_window + 1):
            asked.popleft()
        if len(asked) > limits.asks_in_window and limits.delay > 0:
            await self._delay(peer)
        if peer.running < limits.at_once and not peer.line:
            peer.running += 1
            return
        mine: Deferred[None] = Deferred()
        peer.line.append(mine)
        try:
            await mine  # `leave` hands its place over
        except CancelledError:
            peer.line.remove(mine)
            raise

    def leave(self, server: ServerName) -> None:
        """The request is answered: the next one of the same server has its turn."""
        peer = self._peers[server]
        if peer.line:
            peer.line.popleft().callback(None)
        else:
            peer.running -= 1

    def count_remembered(self) -> int:
        """How many servers are known."""
        return len(self._peers)

    async def _delay(self, peer: _Peer) -> None:
        waited: Deferred[None] = Deferred()
        call = self._clock.callLater(self._limits.delay, waited.callback, None)
        peer.delayed += 1
        try:
            await waited
        finally:
            peer.delayed -= 1
            if call.active():
                call.cancel()

    def _forget(self) -> None:
        since = self._clock.seconds() - self._limits.window
        for server, peer in list(self._peers.items()):
            is_idle = not peer.running and not peer.delayed and not peer.line
            if is_idle and (not peer.asked or peer.asked[-1] <= since):
                del self._peers[server]
