"""Does a piece of work once for all callers that need it at the same time.

Laws:
- While the work for a key runs, further callers wait for it. All these callers get the result of
  the work, or its error.
- A caller that is cancelled stops waiting. The work continues, also when no caller is left.
- Nothing is cached after the work is done.
"""

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SharedWork(Generic[K, T]):
    """Runs pieces of work by key. Use this class only on the reactor thread."""

    def __init__(self) -> None:
        self._waiters: dict[K, list[Deferred[T]]] = {}

    async def run(self, key: K, work: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> T:
        """Wait for the work of this key, and start it unless it runs. Raises the work's error."""
        waiter: Deferred[T] = Deferred()
        if key in self._waiters:
            self._waiters[key].append(waiter)
        else:
            self._waiters[key] = [waiter]
            Deferred.fromCoroutine(work()).addBoth(self._finish, key)
        return await waiter

    def is_running(self, key: K) -> bool:
        """Return whether the work of this key runs."""
        return key in self._waiters

    def _finish(self, outcome: T | Failure, key: K) -> None:
        for each in self._waiters.pop(key):
            if each.called:
                continue  # cancelled
            if isinstance(outcome, Failure):
                each.errback(outcome)
            else:
                each.callback(outcome)
