"""Which servers were asked something a moment ago and said nothing: so that not everybody who asks
them next waits for the same in vain.

Laws:
- Silent is who was waited for in vain for as long as people wait. That a server could be found to
  be away at once costs nobody time, and is not remembered; nor is who was given less time than
  that.
- A word is enough to be no longer silent, be it an answer to whatever was asked, or something that
  the server asks itself: one that has spoken while somebody waited for it is not.
- A minute is remembered, of the latest so many servers: whoever makes up names makes others be
  forgotten, and no more.

It is what this process knows, of every server; what is known of those to which something has to be
sent, is the sender's.
"""

from collections import OrderedDict
from typing import Final

from twisted.internet.interfaces import IReactorTime

from federation.peers.wire import Wire, WireAnswer, WireRequest
from federation.protocol.ids import ServerName

PATIENCE: Final = 8.0
"""Seconds for which a server was waited for that is taken for silent: a little less than most
clients wait."""
REMEMBERED: Final = 60.0
"""Seconds after which a silence is forgotten."""
MOST: Final = 1000
"""Servers of which is known that they were silent, and of which is known when they spoke."""


class Silences:
    """For the reactor thread. Times are seconds of the clock."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._silent: OrderedDict[ServerName, tuple[float, float]] = OrderedDict()
        """Since when, and when it was found so last, in the order of that."""
        self._heard: OrderedDict[ServerName, float] = OrderedDict()
        """When it spoke last, in the order of that."""

    def heard_from(self, server: ServerName) -> None:
        """It has answered, or asked something itself."""
        self._silent.pop(server, None)
        self._heard[server] = self._clock.seconds()
        self._heard.move_to_end(server)
        if len(self._heard) > MOST:
            self._heard.popitem(last=False)

    def note(self, server: ServerName, asked_at: float) -> None:
        """What it was asked then has failed without an answer."""
        now = self._clock.seconds()
        if now - asked_at < PATIENCE or self._heard.get(server, asked_at) > asked_at:
            return
        length = max(self.length(server), now - asked_at)
        self._silent[server] = (now - length, now)
        self._silent.move_to_end(server)
        if len(self._silent) > MOST:
            self._silent.popitem(last=False)

    def length(self, server: ServerName) -> float:
        """For how many seconds the server has been silent, as far as that is remembered; 0 where it
        is not."""
        known = self._silent.get(server)
        if known is None:
            return 0.0
        since, found_at = known
        now = self._clock.seconds()
        if now - found_at >= REMEMBERED:
            del self._silent[server]
            return 0.0
        return now - since


class HearingWire:
    """A wire on which it is heard who answers."""

    def __init__(self, wire: Wire, silences: Silences) -> None:
        self._wire = wire
        self._silences = silences

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireAnswer:
        """Raises RemoteError."""
        answer = await self._wire.exchange(destination, request)
        self._silences.heard_from(destination)
        return answer
