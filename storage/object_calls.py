"""Calls of an object store, in threads: the store may hang, and nobody waits for it longer than it may be silent.

Laws:
- Who waits hears within that time after the last bytes have gone or come, be it that the store is silent or that no thread is
  free.
- A call that was given up before a thread took it is never made. One that is under way ends with its next bytes, or when the
  time of its socket is over (`storage.s3`); what comes of it after all is given to `late`.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from storage.executors import Executor
from storage.object_store import ObjectStoreFailed

T = TypeVar("T")

LEAST_BYTES: Final = 1 << 16
"""Fewer in all the time that a store may be silent are none."""


class Call:
    """A call, as the thread sees it that makes it."""

    def __init__(self) -> None:
        self.is_given_up = False
        self.bytes = 0

    def note(self, count: int) -> None:
        """So many bytes have gone or come; fewer than none: those are sent again. Raises ObjectStoreFailed where nobody waits any
        more."""
        if self.is_given_up:
            raise ObjectStoreFailed("the store was silent for too long, and nobody waits any more")
        self.bytes += max(0, count)


class ObjectCalls:
    """Makes them."""

    def __init__(self, executor: Executor, clock: IReactorTime, patience: float) -> None:
        """`patience`: for how many seconds the store may be silent."""
        self._executor = executor
        self._clock = clock
        self._patience = patience

    async def run(self, work: Callable[[Call], T], late: Callable[[T], None] | None = None) -> T:
        """What `work` returns or raises; ObjectStoreFailed where that takes too long.

        `late` is given on the reactor's thread what comes when nobody waits any more.
        """
        call = Call()
        waiting: Deferred[T] = Deferred()

        def job() -> None:
            if call.is_given_up:
                return
            result: T | Failure
            try:
                result = work(call)
            except BaseException as error:  # whatever it is, the caller gets it; the thread goes on
                result = Failure(error)
            self._executor.deliver(lambda: done(result))

        def done(result: T | Failure) -> None:
            if not call.is_given_up:
                waiting.callback(result)
            elif late is not None and not isinstance(result, Failure):
                late(result)

        timer = self._clock.callLater(self._patience, lambda: check(0))

        def check(before: int) -> None:
            nonlocal timer
            if call.bytes - before >= LEAST_BYTES:
                timer = self._clock.callLater(self._patience, check, call.bytes)
            else:
                call.is_given_up = True
                waiting.errback(ObjectStoreFailed(f"the object store was silent for {self._patience:g} seconds"))

        self._executor.submit(job)
        try:
            return await waiting
        finally:
            call.is_given_up = True
            if timer.active():
                timer.cancel()
