"""Whose work is done next, where strangers can ask for much: by turns among those for whom it is done, each of whom may hold up a
part only, so that nobody keeps the others waiting.

Where `Times` are given, also many together do not: those whose work has taken long lately share the part that one may hold, by turns among
themselves. The rest is for the others.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import MatrixError
from federation.slots import Slots

REMEMBERED_SECONDS: Final = 600.0
MOST_REMEMBERED: Final = 10_000
_SLOW_ONES: Final = "the slow ones"
"""Nobody has such a name."""


class Times(msgspec.Struct, frozen=True):
    """How long things may take, in seconds."""

    clock: IReactorTime
    slow: float
    """Whose work takes longer is slow for a while."""
    longest_wait: float | None = None
    """Who has waited longer for a turn is refused."""


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
        times: Times | None = None,
    ) -> None:
        """`most_of_one`: how much of `at_once` is done for one and the same. What waits beyond the other two is refused."""
        self._slots: Slots[str] = Slots(at_once, most_of_one)
        self._slots_of_slow: Slots[str] = Slots(most_of_one, most_of_one)
        self._most_waiting = most_waiting
        self._most_waiting_of_one = most_waiting_of_one
        self._refusal = refusal
        self._times = times
        self._waiting = 0
        self._slow: dict[str, float] = {}
        """Until when."""

    @asynccontextmanager
    async def turn(self, whose: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the context lasts. `whose`: on whose behalf. Raises the refusal."""
        waiting = max(self._slots.count_waiting(whose), self._slots_of_slow.count_waiting(whose))
        if self._waiting >= self._most_waiting or waiting >= self._most_waiting_of_one:
            raise self._refusal()
        is_slow = self._is_slow(whose)
        self._waiting += 1
        try:
            await self._in_time(self._acquire(whose, is_slow))
        finally:
            self._waiting -= 1
        began = self._now()
        try:
            yield
        finally:
            if self._times is not None and self._now() - began > self._times.slow:
                self._note_slow(whose)
            self._release(whose, is_slow)

    async def _acquire(self, whose: str, is_slow: bool) -> None:
        if not is_slow:
            await self._slots.acquire(whose)
            return
        await self._slots_of_slow.acquire(whose)
        try:
            await self._slots.acquire(_SLOW_ONES)
        except BaseException:
            self._slots_of_slow.release(whose)
            raise

    def _release(self, whose: str, is_slow: bool) -> None:
        self._slots.release(_SLOW_ONES if is_slow else whose)
        if is_slow:
            self._slots_of_slow.release(whose)

    async def _in_time(self, acquiring: Coroutine[Any, Any, None]) -> None:
        if self._times is None or self._times.longest_wait is None:
            await acquiring
            return
        waiting = Deferred.fromCoroutine(acquiring)
        is_over = False

        def give_up() -> None:
            nonlocal is_over
            is_over = True
            waiting.cancel()

        timer = self._times.clock.callLater(self._times.longest_wait, give_up)
        try:
            await waiting
        except CancelledError:
            if is_over:
                raise self._refusal() from None
            raise
        finally:
            if timer.active():
                timer.cancel()

    def _is_slow(self, whose: str) -> bool:
        until = self._slow.get(whose)
        if until is not None and until <= self._now():
            del self._slow[whose]
            return False
        return until is not None

    def _note_slow(self, whose: str) -> None:
        self._slow.pop(whose, None)
        self._slow[whose] = self._now() + REMEMBERED_SECONDS
        if len(self._slow) > MOST_REMEMBERED:
            del self._slow[next(iter(self._slow))]

    def _now(self) -> float:
        return 0.0 if self._times is None else self._times.clock.seconds()
