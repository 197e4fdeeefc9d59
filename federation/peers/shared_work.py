"""Many who want the same thing wait for one who does it.

Whoever waits may give up without harm to the others; the work goes on, and has to end by itself.
"""

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SharedWork(Generic[K, T]):
    """What is being done, by a key."""

    def __init__(self) -> None:
        self._waiting: dict[K, list[Deferred[T]]] = {}

    async def run(self, key: K, work: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> T:
        """What the work for this key returns or raises: it is begun unless it is being done."""
        mine: Deferred[T] = Deferred()
        if key in self._waiting:
            self._waiting[key].append(mine)
        else:
            self._waiting[key] = [mine]
            Deferred.fromCoroutine(work()).addBoth(self._tell, key)
        return await mine

    def is_under_way(self, key: K) -> bool:
        """Whether the work for this key is being done."""
        return key in self._waiting

    def _tell(self, outcome: T | Failure, key: K) -> None:
        for each in self._waiting.pop(key):
            if each.called:
                continue
            if isinstance(outcome, Failure):
                each.errback(outcome)
            else:
                each.callback(outcome)
