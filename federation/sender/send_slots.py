"""How many transactions may begin at once, so that servers which do not answer keep none waiting
that do.

A place is given up by whoever has not been answered for some seconds, while its request goes on: it
has waited long enough to show that it will be no quick one. Where others wait that is after one
second, unless very many are under way already. So as many requests may be under way as have places,
times the seconds that a request may take by those that it holds its place, and some more.

Who waits has a place in the order in which they came; but a server that speaks to us meanwhile has
the next: it is there.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.protocol.ids import ServerName

HELD_SECONDS: Final = 5
"""How long a request holds its place at most; most are answered within one second."""
MANY_UNDER_WAY: Final = 512
"""From so many requests on each holds its place for as long as it may."""

T = TypeVar("T")


class Lane:
    """Lets work begin, one at a time for each server. For the reactor thread."""

    def __init__(self, clock: IReactorTime, places: int) -> None:
        self._clock = clock
        self._free = places
        self._waiting: OrderedDict[ServerName, Deferred[None]] = OrderedDict()
        self._under_way = 0

    async def run(self, server: ServerName, work: Callable[[], Awaitable[T]]) -> T:
        """What the work returns or raises, once it had a place."""
        if self._free:
            self._free -= 1
        else:
            turn = self._waiting[server] = Deferred()
            await turn
        self._under_way += 1
        place = _Place()
        self._look_in_a_second(place)
        try:
            return await work()
        finally:
            self._under_way -= 1
            if place.look is not None:
                place.look.cancel()
                self._give_up(place)

    def hurry(self, server: ServerName) -> None:
        """If the server waits for a place, it has the next."""
        if server in self._waiting:
            self._waiting.move_to_end(server, last=False)

    def _look_in_a_second(self, place: "_Place") -> None:
        place.look = self._clock.callLater(1, self._look, place)

    def _look(self, place: "_Place") -> None:
        place.seconds += 1
        if place.seconds >= HELD_SECONDS or (self._waiting and self._under_way < MANY_UNDER_WAY):
            self._give_up(place)
        else:
            self._look_in_a_second(place)

    def _give_up(self, place: "_Place") -> None:
        place.look = None
        if self._waiting:
            self._waiting.popitem(last=False)[1].callback(None)
        else:
            self._free += 1


class _Place(msgspec.Struct):
    """What a request holds, until nothing looks after it any more."""

    seconds: int = 0
    look: IDelayedCall | None = None
