"""Bounds how many transactions begin at once, so that servers that do not answer delay no others.

A request gives its slot back once it has run for some seconds without an answer, and goes on
without one: it will be no quick one. Where others wait it does so after one second, unless very
many requests run already. So the number of requests that run is bounded by the slots, times a
request's time limit over the time that it holds its slot.

Servers wait in the order in which they came. A server that speaks to us meanwhile is next: it is
there.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.peers.fair_semaphore import FairSemaphore
from federation.protocol.ids import ServerName

HELD_SECONDS: Final = 5
"""How long a request holds its slot at most. Most are answered within one second."""
MANY_UNDER_WAY: Final = 512
"""From so many requests on, each holds its slot for as long as it may."""

T = TypeVar("T")


class Lane:
    """Begins requests, one at a time for each server. For the reactor thread."""

    def __init__(self, clock: IReactorTime, places: int) -> None:
        self._clock = clock
        self._slots: FairSemaphore[ServerName] = FairSemaphore(places, 1)
        self._under_way = 0

    async def run(self, server: ServerName, work: Callable[[], Awaitable[T]]) -> T:
        """Wait for a slot and do the work; what it returns or raises."""
        await self._slots.acquire(server)
        self._under_way += 1
        slot = _Slot(server)
        self._look_in_a_second(slot)
        try:
            return await work()
        finally:
            self._under_way -= 1
            if slot.look is not None:
                slot.look.cancel()
                self._give_back(slot)

    def hurry(self, server: ServerName) -> None:
        """Give the server the next slot, if it waits for one."""
        self._slots.prioritize(server)

    def _look_in_a_second(self, slot: "_Slot") -> None:
        slot.look = self._clock.callLater(1, self._look, slot)

    def _look(self, slot: "_Slot") -> None:
        slot.seconds += 1
        if slot.seconds >= HELD_SECONDS or (
            self._slots.waiting_in_all and self._under_way < MANY_UNDER_WAY
        ):
            self._give_back(slot)
        else:
            self._look_in_a_second(slot)

    def _give_back(self, slot: "_Slot") -> None:
        slot.look = None
        self._slots.release(slot.server)


class _Slot(msgspec.Struct):
    """A slot, held while `look` is a call to come."""

    server: ServerName
    seconds: int = 0
    look: IDelayedCall | None = None
