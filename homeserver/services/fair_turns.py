"""Whose work is done next, where strangers can ask for much: by turns among those for whom it is done, each of whom may hold up a
part only, so that nobody keeps the others waiting."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import MatrixError
from federation.slots import Slots


class FairTurns:
    """So much work at once."""

    def __init__(
        self,
        at_once: int,
        most_of_one: int,
        *,
        most_waiting: int,
        most_waiting_of_one: int,
        refusal: Callable[[], MatrixError],
        longest: tuple[IReactorTime, float] | None = None,
    ) -> None:
        """`most_of_one`: how much of `at_once` is done for one and the same. What waits beyond the other two is refused, and so is what
        has waited longer than `longest`, in seconds."""
        self._slots: Slots[str] = Slots(at_once, most_of_one)
        self._most_waiting = most_waiting
        self._most_waiting_of_one = most_waiting_of_one
        self._refusal = refusal
        self._longest = longest
        self._waiting = 0

    @asynccontextmanager
    async def turn(self, whose: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the context lasts. `whose`: on whose behalf. Raises the refusal."""
        if self._waiting >= self._most_waiting or self._slots.count_waiting(whose) >= self._most_waiting_of_one:
            raise self._refusal()
        self._waiting += 1
        try:
            await self._acquire(whose)
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release(whose)

    async def _acquire(self, whose: str) -> None:
        if self._longest is None:
            await self._slots.acquire(whose)
            return
        clock, seconds = self._longest
        waiting = Deferred.fromCoroutine(self._slots.acquire(whose))
        is_over = False

        def give_up() -> None:
            nonlocal is_over
            is_over = True
            waiting.cancel()

        timer = clock.callLater(seconds, give_up)
        try:
            await waiting
        except CancelledError:
            if is_over:
                raise self._refusal() from None
            raise
        finally:
            if timer.active():
                timer.cancel()
