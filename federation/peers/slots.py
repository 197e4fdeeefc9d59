"""Work by turns among those for whom it is done, so that nobody takes the room of the rest."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred

K = TypeVar("K", bound=Hashable)


class Slots(Generic[K]):
    """So much work at once for all together, of which one may hold up a part only. Who waits is let
    in by turns among those for whom somebody waits. For the reactor thread."""

    def __init__(self, most: int, most_of_one: int | Callable[[K], bool]) -> None:
        """`most_of_one`: a number, or whether somebody may hold another, asked when there is a
        slot. When the answer changes without a `release`, `look_again`."""
        self._free = most
        self._most_of_one = most_of_one
        self._held: Counter[K] = Counter()
        self._waiting: OrderedDict[K, deque[Deferred[None]]] = OrderedDict()
        self._is_letting_in = False

    async def acquire(self, whose: K) -> None:
        """Wait for a slot for work on somebody's behalf. A `release` follows."""
        mine: Deferred[None] = Deferred()
        self._waiting.setdefault(whose, deque()).append(mine)
        self._let_in()
        try:
            await mine
        except CancelledError:
            line = self._waiting.get(whose)
            if line is not None and mine in line:
                line.remove(mine)
                if not line:
                    del self._waiting[whose]
            raise

    def release(self, whose: K) -> None:
        """The work is done."""
        self._free += 1
        self._held[whose] -= 1
        if not self._held[whose]:
            del self._held[whose]
        self._let_in()

    def look_again(self) -> None:
        """Somebody may hold more than before."""
        self._let_in()

    def waiting(self) -> Iterable[K]:
        """Those on whose behalf somebody waits."""
        return self._waiting.keys()

    def _let_in(self) -> None:
        if self._is_letting_in:
            # whoever was let in is done already: who has let them in goes on, lest each be let in
            # by the one before
            return
        self._is_letting_in = True
        try:
            while (mine := self._next()) is not None:
                mine.callback(None)
        finally:
            self._is_letting_in = False

    def _next(self) -> Deferred[None] | None:
        """Whose turn it is, and who has a slot from now on."""
        if not self._free:
            return None
        for whose, line in self._waiting.items():
            if self._may_hold_more(whose):
                mine = line.popleft()
                if line:
                    self._waiting.move_to_end(
                        whose
                    )  # the others have their turn before it has another
                else:
                    del self._waiting[whose]
                self._free -= 1
                self._held[whose] += 1
                return mine
        return None

    def _may_hold_more(self, whose: K) -> bool:
        if isinstance(self._most_of_one, int):
            return self._held[whose] < self._most_of_one
        return self._most_of_one(whose)
