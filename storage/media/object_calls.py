"""Calls of an object store, in threads: the store may hang, and nobody waits for it longer than it
may be silent.

Laws:
- Of who waits each hears within that time of it that the store is silent: none of their bytes
  moves, or, while no thread is free, those of nobody. While a store joins the parts of what has
  gone there, it may be silent for longer.
- A call that was given up before a thread took it is never made. One that is under way ends with
  its next bytes, or when the time of its socket is over (`storage.media.s3`); what comes of it
  after all is given to `late`.
- Long calls have a part of the threads only, so that short ones do not wait for them.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from storage.engine.executors import Executor
from storage.media.object_store import ObjectStoreFailed

T = TypeVar("T")

LEAST_BYTES: Final = 1 << 16
"""Fewer in all the time that a store may be silent are none."""


class Call:
    """A call, as the thread sees it that makes it."""

    def __init__(self, clock: IReactorTime) -> None:
        self.is_begun = False
        self.is_given_up = False
        self.bytes = 0
        self.silent_until = 0.0
        """By the clock: until then it is no wonder that no bytes move."""
        self._clock = clock

    def note(self, count: int) -> None:
        """So many bytes have gone or come; fewer than none: those are sent again. Raises
        ObjectStoreFailed where nobody waits any more."""
        if self.is_given_up:
            raise ObjectStoreFailed("the store was silent for too long, and nobody waits any more")
        self.bytes += max(0, count)

    def expect_silence(self, seconds: float) -> None:
        """From now on no bytes move, for so long at most, and that is right. Raises
        ObjectStoreFailed like `note`."""
        self.note(0)
        self.silent_until = self._clock.seconds() + seconds


class ObjectCalls:
    """Makes them."""

    def __init__(
        self, executor: Executor, clock: IReactorTime, patience: float, long_at_once: int = 1
    ) -> None:
        """`patience`: for how many seconds the store may be silent. `long_at_once`: how many
        threads long calls have."""
        self._executor = executor
        self._clock = clock
        self._patience = patience
        self._long_free = long_at_once
        self._long_waiting: deque[Callable[[], None]] = deque()
        self._under_way: set[Call] = set()
        self._moved = 0
        """Bytes of calls that have ended, and for each that did well some besides."""

    async def run(
        self,
        work: Callable[[Call], T],
        late: Callable[[T], None] | None = None,
        *,
        is_long: bool = False,
    ) -> T:
        """What `work` returns or raises; ObjectStoreFailed where the store is silent for too long.

        `late` is given on the reactor's thread what comes when nobody waits any more.
        """
        call = Call(self._clock)
        waiting: Deferred[T] = Deferred()

        def job() -> None:
            result: T | Failure
            self._executor.deliver(begun)
            try:
                call.note(0)
                result = work(call)
            except BaseException as error:  # whatever it is, the caller gets it; the thread goes on
                result = Failure(error)
            self._executor.deliver(lambda: done(result))

        def begun() -> None:
            call.is_begun = True
            if not call.is_given_up:
                watch.begin()

        def done(result: T | Failure) -> None:
            self._end(call, is_long, is_well=not isinstance(result, Failure))
            if not call.is_given_up:
                waiting.callback(result)
            elif late is not None and not isinstance(result, Failure):
                late(result)

        def give_up() -> None:
            call.is_given_up = True
            waiting.errback(
                ObjectStoreFailed(f"the object store was silent for {self._patience:g} seconds")
            )

        watch = _Watch(
            self._clock,
            self._patience,
            lambda: self._bytes_of(call),
            lambda: self._silent_until(call),
            give_up,
        )
        watch.begin()
        self._begin(call, job, is_long)
        try:
            return await waiting
        finally:
            call.is_given_up = True
            watch.end()

    def _bytes_of(self, call: Call) -> int:
        """What has moved of this call, or, before it is begun, of all."""
        return (
            call.bytes
            if call.is_begun
            else self._moved + sum(each.bytes for each in self._under_way)
        )

    def _silent_until(self, call: Call) -> float:
        """Until when the silence of this call is right, or, before it is begun, that of all."""
        return max(
            (each.silent_until for each in ([call] if call.is_begun else self._under_way)),
            default=0.0,
        )

    def _begin(self, call: Call, job: Callable[[], None], is_long: bool) -> None:
        def begin() -> None:
            self._under_way.add(call)
            self._executor.submit(job)

        if not is_long:
            begin()
        elif self._long_free:
            self._long_free -= 1
            begin()
        else:
            self._long_waiting.append(begin)

    def _end(self, call: Call, is_long: bool, *, is_well: bool) -> None:
        self._under_way.discard(call)
        self._moved += call.bytes + (LEAST_BYTES if is_well else 0)
        if is_long and self._long_waiting:
            self._long_waiting.popleft()()
        elif is_long:
            self._long_free += 1


class _Watch:
    """Gives up what does not move."""

    def __init__(
        self,
        clock: IReactorTime,
        patience: float,
        count: Callable[[], int],
        silent_until: Callable[[], float],
        give_up: Callable[[], None],
    ) -> None:
        """`count`: how many bytes have moved so far. `silent_until`: when they should move
        again."""
        self._clock = clock
        self._patience = patience
        self._count = count
        self._silent_until = silent_until
        self._give_up = give_up
        self._timer: IDelayedCall | None = None

    def begin(self) -> None:
        """Count from now on."""
        self.end()
        self._timer = self._clock.callLater(self._patience, self._look, self._count())

    def end(self) -> None:
        """It is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, before: int) -> None:
        self._timer = None
        if self._count() - before >= LEAST_BYTES:
            self.begin()
        elif (rest := self._silent_until() - self._clock.seconds()) > 0:
            self._timer = self._clock.callLater(rest, self._look, before)
        else:
            self._give_up()
