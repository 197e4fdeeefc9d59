"""Places for files on their way here from other servers: so many quick ones at once, and apart from
them the slow ones, which so keep nobody waiting.

Laws:
- A transfer begins in a quick place, which are given by turns among who asks and which server is
  asked. One server holds a few of them at most, and only one while it has slow transfers; for one
  who asks half of them are held at most.
- One that is slow leaves its place to others and goes on among the slow ones. It costs a connection
  and no memory there.
- A server that is slow loses nothing by it: what is under way goes on, and what it may not begin
  yet waits until one of its own is done.
- Of the slow ones there are so many at most. What becomes slow beyond that stays where it is while
  its place keeps nobody waiting; else the slowest of all is given up. So whatever servers do, quick
  places become free, and a handful of servers, or somebody who asks for many, takes no room from
  the rest.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.peers.slots import Slots
from federation.protocol.errors import LimitExceeded
from federation.protocol.ids import ServerName

K = TypeVar("K", bound=str)

QUICK_AT_ONCE: Final = 40
QUICK_OF_ONE: Final = 4
QUICK_FOR_ONE: Final = 20
SLOW_AT_ONCE: Final = 160
SLOW_OF_ONE: Final = 4
"""Fewer than the connections to one server (`federation.http_client.pool`), which events need too.
Quick ones of it count there as well."""
WAITING_OF_ONE: Final = 200
WAITING_FOR_ONE: Final = 200
LOOK_SECONDS: Final = 5.0
QUICK_BYTES: Final = 5 << 20
"""Who has sent fewer since the last look is slow."""


class Lanes:
    """All places."""

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self._slow: list[Place] = []
        self._slow_of: Counter[ServerName] = Counter()
        self._quick_of: Counter[ServerName] = Counter()
        self._quick_for: Counter[str] = Counter()
        self._waiting_of: Counter[ServerName] = Counter()
        self._waiting_for: Counter[str] = Counter()
        self._quick: Slots[tuple[str, ServerName]] = Slots(QUICK_AT_ONCE, self._may_hold_more)

    async def enter(self, server: ServerName, whose: str) -> "Place":
        """Wait for a place for a file of this server, which who has it leaves. `whose`: who asks
        for the file. Raises LimitExceeded."""
        if self._waiting_of[server] >= WAITING_OF_ONE:
            raise LimitExceeded(
                f"Too many files of {server} are being fetched", retry_after_ms=5000
            )
        if self._waiting_for[whose] >= WAITING_FOR_ONE:
            raise LimitExceeded(
                "You have asked for too many files of other servers at once", retry_after_ms=5000
            )
        self._waiting_of[server] += 1
        self._waiting_for[whose] += 1
        try:
            await self._quick.acquire((whose, server))
        finally:
            _take_one(self._waiting_of, server)
            _take_one(self._waiting_for, whose)
        self._quick_of[server] += 1
        self._quick_for[whose] += 1
        return Place(self, server, whose)

    def slow_down(self, place: "Place") -> bool:
        """It is slow. Whether it goes on among the slow ones: while there is no room, and nobody
        waits for its place, it keeps that."""
        if len(self._slow) >= SLOW_AT_ONCE:
            if not self._is_waited_for(place):
                return False
            self._give_up_slowest()
        self._slow.append(place)
        self._slow_of[place.server] += 1
        self._release(place)
        return True

    def leave(self, place: "Place") -> None:
        """It is done."""
        if not place.is_slow:
            self._release(place)
        elif place in self._slow:
            self._forget(place)

    def _may_hold_more(self, key: tuple[str, ServerName]) -> bool:
        whose, server = key
        return self._may_send_more(server) and self._quick_for[whose] < QUICK_FOR_ONE

    def _may_send_more(self, server: ServerName) -> bool:
        slow = self._slow_of[server]
        return slow < SLOW_OF_ONE and self._quick_of[server] < (1 if slow else QUICK_OF_ONE)

    def _is_waited_for(self, place: "Place") -> bool:
        """Whether a file of another server could begin if this place were free."""
        return any(
            server != place.server
            and self._may_send_more(server)
            and (whose == place.whose or self._quick_for[whose] < QUICK_FOR_ONE)
            for whose, server in self._quick.waiting()
        )

    def _release(self, place: "Place") -> None:
        _take_one(self._quick_of, place.server)
        _take_one(self._quick_for, place.whose)
        self._quick.release((place.whose, place.server))

    def _give_up_slowest(self) -> None:
        slowest = min(self._slow, key=Place.speed)
        self._forget(slowest)
        slowest.end()

    def _forget(self, place: "Place") -> None:
        """It is no longer among the slow ones."""
        self._slow.remove(place)
        _take_one(self._slow_of, place.server)
        self._quick.look_again()


class Place:
    """One of them."""

    def __init__(self, lanes: Lanes, server: ServerName, whose: str) -> None:
        self.server = server
        self.whose = whose
        self.is_slow = False
        self.is_taken_away = False
        self._lanes = lanes
        self._received: Callable[[], int] = lambda: 0
        self._give_up: Callable[[], None] = lambda: None
        self._began = lanes.clock.seconds()
        self._timer: IDelayedCall | None = lanes.clock.callLater(LOOK_SECONDS, self._look, 0)

    def begin(self, received: Callable[[], int], give_up: Callable[[], None]) -> None:
        """The transfer begins: how many bytes have come, and how it is given up where others need
        the place."""
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
        """Others need the place."""
        self.is_taken_away = True
        self._give_up()

    def _look(self, before: int) -> None:
        received = self._received()
        self._timer = None
        self.is_slow = received - before < QUICK_BYTES and self._lanes.slow_down(self)
        if not self.is_slow:
            self._timer = self._lanes.clock.callLater(LOOK_SECONDS, self._look, received)


def _take_one(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
