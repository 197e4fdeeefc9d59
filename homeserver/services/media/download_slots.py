"""Bounds the transfers of files from other servers: a number of quick ones, and apart from them the
slow ones, which so delay nobody.

Laws:
- A transfer begins in a quick place. These are given in turns of users who ask and servers that are
  asked. One server holds a few of them at most, and only one while it has slow transfers; one user
  holds half of them at most.
- A slow transfer leaves its place to others and goes on among the slow ones. It costs a connection
  and no memory there.
- A slow server loses nothing by it: what runs goes on, and what it may not begin yet waits until
  one of its own is done.
- The number of slow transfers is bounded. What becomes slow beyond that stays where it is while
  nobody waits for its place; else the slowest of all is given up. So quick places become free
  whatever servers do, and neither a handful of servers nor a user who asks for many files takes
  room from the rest.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.peers.fair_semaphore import FairSemaphore
from federation.protocol.errors import LimitExceeded
from federation.protocol.ids import ServerName

QUICK_AT_ONCE: Final = 40
QUICK_OF_ONE: Final = 4
QUICK_FOR_ONE: Final = 20
SLOW_AT_ONCE: Final = 160
SLOW_OF_ONE: Final = 4
"""Fewer than the connections to one server (`federation.http_client.agent`), which events need too.
Quick ones of it count there as well."""
WAITING_OF_ONE: Final = 200
WAITING_FOR_ONE: Final = 200
LOOK_SECONDS: Final = 5.0
QUICK_BYTES: Final = 5 << 20
"""A transfer that got fewer since the last look is slow."""


class _Party(NamedTuple):
    """A server that is asked, or a user who asks."""

    kind: Literal["server", "user"]
    name: str


class Lanes:
    """All places."""

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self._slow: list[Place] = []
        self._slow_of: Counter[str] = Counter()
        self._quick: FairSemaphore[_Party] = FairSemaphore(
            QUICK_AT_ONCE,
            self._share,
            max_waiting_per_key=lambda party: (
                WAITING_OF_ONE if party.kind == "server" else WAITING_FOR_ONE
            ),
            refusal=_refusal,
        )

    async def enter(self, server: ServerName, whose: str) -> "Place":
        """Wait for a place for a file of this server, which a user asks for. Raises
        LimitExceeded."""
        place = Place(self, server, whose)
        await self._quick.acquire(*place.parties)
        place.start()
        return place

    def slow_down(self, place: "Place") -> bool:
        """Move a slow transfer among the slow ones. False: there is no room, and nobody waits for
        its place."""
        if len(self._slow) >= SLOW_AT_ONCE:
            if not self._is_waited_for(place):
                return False
            self._give_up_slowest()
        self._slow.append(place)
        self._slow_of[place.server] += 1
        self._quick.release(*place.parties)
        return True

    def leave(self, place: "Place") -> None:
        """The transfer is done."""
        if not place.is_slow:
            self._quick.release(*place.parties)
        elif place in self._slow:
            self._forget(place)

    def _share(self, party: _Party) -> int:
        if party.kind == "user":
            return QUICK_FOR_ONE
        slow = self._slow_of[party.name]
        if slow >= SLOW_OF_ONE:
            return 0
        return 1 if slow else QUICK_OF_ONE

    def _is_waited_for(self, place: "Place") -> bool:
        """Whether a file of another server could begin if this place were free."""

        def has_share(party: _Party) -> bool:
            return self._quick.held(party) < self._share(party)

        mine, asker = place.parties
        return any(
            server != mine and has_share(server) and (user == asker or has_share(user))
            for server, user in self._quick.waiting_keys()
        )

    def _give_up_slowest(self) -> None:
        slowest = min(self._slow, key=Place.speed)
        self._forget(slowest)
        slowest.end()

    def _forget(self, place: "Place") -> None:
        """Remove a transfer from the slow ones."""
        self._slow.remove(place)
        self._slow_of -= Counter({place.server: 1})
        self._quick.recheck()


def _refusal(party: _Party | None) -> LimitExceeded:
    if party is not None and party.kind == "server":
        return LimitExceeded(
            f"Too many files of {party.name} are being fetched", retry_after_ms=5000
        )
    return LimitExceeded(
        "You have asked for too many files of other servers at once", retry_after_ms=5000
    )


class Place:
    """The right to a transfer."""

    def __init__(self, lanes: Lanes, server: ServerName, whose: str) -> None:
        self.server = server
        self.parties = (_Party("server", server), _Party("user", whose))
        self.is_slow = False
        self.is_taken_away = False
        self._lanes = lanes
        self._received: Callable[[], int] = lambda: 0
        self._give_up: Callable[[], None] = lambda: None
        self._began = 0.0
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """The place is held from now on."""
        self._began = self._lanes.clock.seconds()
        self._look_later(0)

    def begin(self, received: Callable[[], int], give_up: Callable[[], None]) -> None:
        """The transfer begins. `received`: how many bytes have come; `give_up` ends it."""
        self._received = received
        self._give_up = give_up

    def speed(self) -> float:
        """Bytes a second, from the beginning."""
        return self._received() / max(1.0, self._lanes.clock.seconds() - self._began)

    def leave(self) -> None:
        """The transfer is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._lanes.leave(self)

    def end(self) -> None:
        """Give the transfer up, since others need the place."""
        self.is_taken_away = True
        self._give_up()

    def _look_later(self, before: int) -> None:
        self._timer = self._lanes.clock.callLater(LOOK_SECONDS, self._look, before)

    def _look(self, before: int) -> None:
        received = self._received()
        self._timer = None
        self.is_slow = received - before < QUICK_BYTES and self._lanes.slow_down(self)
        if not self.is_slow:
            self._look_later(received)
