"""Whose work is done next, where strangers can ask for much: by turns among those for whom it is
done, each of whom may hold up a part only, so that nobody keeps the others waiting. Who asks for it
may be somebody else: then he holds up no more than such a part either, and what waits is counted
for him.

Where `Times` are given, also many together do not: those whose work has taken long lately share the
part that one may hold, by turns among themselves. The rest is for the others.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from federation.peers.slots import Slots
from federation.protocol.errors import MatrixError

REMEMBERED_SECONDS: Final = 600.0
MOST_REMEMBERED: Final = 10_000
_SLOW_ONES: Final = "the slow ones"
"""Nobody has such a name."""


class _Turn(NamedTuple):
    """On whose behalf, and who asks."""

    whose: str
    asker: str

    def of_slow(self) -> "_Turn":
        """Beside those who are not slow."""
        return _Turn(_SLOW_ONES, self.asker)


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
        """`most_of_one`: how much of `at_once` is done for one and the same. What waits beyond the
        other two is refused."""
        self._most_of_one = most_of_one
        self._slots: Slots[_Turn] = Slots(at_once, self._may_hold_more)
        self._slots_of_slow: Slots[_Turn] = Slots(most_of_one, most_of_one)
        self._held_for: Counter[str] = Counter()
        self._held_by: Counter[str] = Counter()
        self._most_waiting = most_waiting
        self._most_waiting_of_one = most_waiting_of_one
        self._refusal = refusal
        self._times = times
        self._waiting: Counter[str] = Counter()
        self._slow: dict[str, float] = {}
        """Until when."""

    @asynccontextmanager
    async def turn(self, whose: str, asker: str | None = None) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the context lasts. `whose`: on whose behalf; `asker`:
        who asks, where that is another matter. Raises the refusal."""
        turn = _Turn(whose, whose if asker is None else asker)
        if (
            self._waiting.total() >= self._most_waiting
            or self._waiting[turn.asker] >= self._most_waiting_of_one
        ):
            raise self._refusal()
        is_slow = self._is_slow(whose)
        self._waiting[turn.asker] += 1
        try:
            await self._in_time(self._acquire(turn, is_slow))
        finally:
            self._waiting -= Counter({turn.asker: 1})
        began = self._now()
        try:
            yield
        finally:
            if self._times is not None and self._now() - began > self._times.slow:
                self._note_slow(whose)
            self._release(turn, is_slow)

    async def _acquire(self, turn: "_Turn", is_slow: bool) -> None:
        if not is_slow:
            await self._acquire_one(turn)
            return
        await self._slots_of_slow.acquire(turn)
        try:
            await self._acquire_one(turn.of_slow())
        except BaseException:
            self._slots_of_slow.release(turn)
            raise

    async def _acquire_one(self, turn: "_Turn") -> None:
        await self._slots.acquire(turn)
        self._held_for[turn.whose] += 1
        self._held_by[turn.asker] += 1

    def _release(self, turn: "_Turn", is_slow: bool) -> None:
        held = turn.of_slow() if is_slow else turn
        self._held_for -= Counter({held.whose: 1})
        self._held_by -= Counter({held.asker: 1})
        self._slots.release(held)
        if is_slow:
            self._slots_of_slow.release(turn)

    def _may_hold_more(self, turn: "_Turn") -> bool:
        return max(self._held_for[turn.whose], self._held_by[turn.asker]) < self._most_of_one

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
