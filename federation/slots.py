"""Work by turns among those for whom it is done, so that nobody takes the room of the rest."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred

K = TypeVar("K", bound=Hashable)


class Slots(Generic[K]):
    """So much work at once for all together, of which one may hold up a part only. Who waits is let in by turns among
    those for whom somebody waits. For the reactor thread."""

    def __init__(self, most: int, most_of_one: int | Callable[[K], int]) -> None:
        """`most_of_one`: a number, or who has how much; when that has changed for somebody, `look_again`."""
        self._free = most
        self._most_of_one = most_of_one
        self._held: Counter[K] = Counter()
        self._waiting: OrderedDict[K, deque[Deferred[None]]] = OrderedDict()

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

    def count_waiting(self, whose: K) -> int:
        """How much waits for a slot on somebody's behalf."""
        return len(self._waiting.get(whose, ()))

    def _let_in(self) -> None:
        for whose in list(self._waiting):
            if not self._free:
                return
            if self._held[whose] >= self._share(whose):
                continue
            line = self._waiting.get(whose)
            if not line:
                continue  # whoever was let in before is done already, and let others in
            mine = line.popleft()
            if line:
                self._waiting.move_to_end(whose)  # the others have their turn before it has another
            else:
                del self._waiting[whose]
            self._free -= 1
            self._held[whose] += 1
            mine.callback(None)

    def _share(self, whose: K) -> int:
        return self._most_of_one if isinstance(self._most_of_one, int) else self._most_of_one(whose)
