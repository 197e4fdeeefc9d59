"""How many transactions may begin at once, so that servers which do not answer keep none waiting that do.

A place is given up by whoever has not been answered for some seconds, while its request goes on: it has waited long enough to show
that it will be no quick one. So as many requests may be under way as have places, times the seconds that a request may take by
those that it holds its place.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from twisted.internet.defer import DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

HELD_SECONDS: Final = 5.0
"""How long a request holds its place; most are answered within one."""

T = TypeVar("T")


class Lane:
    """Lets work begin in the order in which it came. For the reactor thread."""

    def __init__(self, clock: IReactorTime, places: int) -> None:
        self._clock = clock
        self._places = DeferredSemaphore(places)

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """What the work returns or raises, once it had a place."""
        await self._places.acquire()
        leaving = self._clock.callLater(HELD_SECONDS, self._places.release)
        try:
            return await work()
        finally:
            if leaving.active():
                leaving.cancel()
                self._places.release()
