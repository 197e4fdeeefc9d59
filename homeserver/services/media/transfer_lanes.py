"""Places for files on their way here from other servers: so many quick ones at once, and apart from them the slow ones, which so keep
nobody waiting.

Laws:
- A transfer begins in a quick place, which are given by turns among servers; one server holds a few of them at most, and only one
  while it has slow transfers.
- One that is slow leaves its place to others and goes on among the slow ones. It costs a connection and no memory there.
- Of the slow ones there are so many at most, of one server and in all: beyond that the slowest of them is given up. So whatever
  servers do, quick places become free, and a handful of servers takes no room from the rest.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.protocol.ids import ServerName
from federation.slots import Slots

QUICK_AT_ONCE: Final = 40
QUICK_OF_ONE: Final = 4
SLOW_AT_ONCE: Final = 160
SLOW_OF_ONE: Final = 4
"""With one more they are fewer than the connections to one server (`federation.outbound.pool`), which events need too."""
LOOK_SECONDS: Final = 5.0
QUICK_BYTES: Final = 5 << 20
"""Who has sent fewer since the last look is slow."""


class Lanes:
    """All places."""

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self._slow: list[Place] = []
        self._slow_of: Counter[ServerName] = Counter()
        self._quick: Slots[ServerName] = Slots(
            QUICK_AT_ONCE, lambda server: 1 if self._slow_of[server] else QUICK_OF_ONE
        )

    def count_waiting(self, server: ServerName) -> int:
        """How many transfers from this server wait for a place."""
        return self._quick.count_waiting(server)

    async def enter(self, server: ServerName) -> "Place":
        """Wait for a place, which who has it leaves."""
        await self._quick.acquire(server)
        return Place(self, server)

    def slow_down(self, place: "Place") -> None:
        """It is slow."""
        self._slow.append(place)
        self._slow_of[place.server] += 1
        self._quick.release(place.server)
        if self._slow_of[place.server] > SLOW_OF_ONE:
            self._give_up_slowest([each for each in self._slow if each.server == place.server])
        elif len(self._slow) > SLOW_AT_ONCE:
            self._give_up_slowest(self._slow)

    def leave(self, place: "Place") -> None:
        """It is done."""
        if not place.is_slow:
            self._quick.release(place.server)
        elif place in self._slow:
            self._forget(place)

    def _give_up_slowest(self, among: "list[Place]") -> None:
        slowest = min(among, key=Place.speed)
        self._forget(slowest)
        slowest.end()

    def _forget(self, place: "Place") -> None:
        """It is no longer among the slow ones."""
        self._slow.remove(place)
        self._slow_of[place.server] -= 1
        if not self._slow_of[place.server]:
            del self._slow_of[place.server]
            self._quick.look_again()


class Place:
    """One of them."""

    def __init__(self, lanes: Lanes, server: ServerName) -> None:
        self.server = server
        self.is_slow = False
        self.is_taken_away = False
        self._lanes = lanes
        self._received: Callable[[], int] = lambda: 0
        self._give_up: Callable[[], None] = lambda: None
        self._began = lanes.clock.seconds()
        self._timer: IDelayedCall | None = lanes.clock.callLater(LOOK_SECONDS, self._look, 0)

    def begin(self, received: Callable[[], int], give_up: Callable[[], None]) -> None:
        """The transfer begins: how many bytes have come, and how it is given up where others need the place."""
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
        if received - before >= QUICK_BYTES:
            self._timer = self._lanes.clock.callLater(LOOK_SECONDS, self._look, received)
        else:
            self._timer = None
            self.is_slow = True
            self._lanes.slow_down(self)
