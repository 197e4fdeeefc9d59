"""Runs calls to an object store in threads, and limits how long the store may be silent.

If the store hangs, its callers do not.

Laws:
- Each caller fails within a time limit after the store becomes silent. The store is silent if fewer
  than `MIN_BYTES` move in `max_silence` seconds. Only the bytes of the caller's own call count. But
  while this call waits for a thread, the bytes of all calls count. While a store joins uploaded
  parts, the limit is longer.
- A call is abandoned when its caller fails. If no thread has taken it yet, it is never made. If it
  is running, it fails when its next bytes move, or at its socket timeout (`storage.media.s3`). If
  it still returns a result, `on_late_result` gets the result.
- Long calls, which write large contents, get only some of the threads, so that short ones do not
  wait for them.
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

MIN_BYTES: Final = 1 << 16
"""The store is silent if fewer bytes move in `max_silence` seconds."""


class ObjectCall:
    """A running call, as the thread that makes it uses it."""

    def __init__(self, clock: IReactorTime) -> None:
        self.is_begun = False
        self.is_abandoned = False
        self.bytes = 0
        self.silent_until = 0.0
        """By the clock: until then silence is expected."""
        self._clock = clock

    def record(self, count: int) -> None:
        """Record that bytes moved; negative: they are sent again. Raises ObjectStoreFailed if
        nobody waits any more."""
        if self.is_abandoned:
            raise ObjectStoreFailed("the store was silent for too long; the call was abandoned")
        self.bytes += max(0, count)

    def expect_silence(self, seconds: float) -> None:
        """Expect that no bytes move for at most `seconds`. Raises ObjectStoreFailed like
        `record`."""
        self.record(0)
        self.silent_until = self._clock.seconds() + seconds


class ObjectCallRunner:
    """Runs calls of an object store in threads."""

    def __init__(
        self, *, executor: Executor, clock: IReactorTime, max_silence: float, max_long: int = 1
    ) -> None:
        """`max_silence`: seconds that the store may be silent. `max_long`: threads for long
        calls."""
        self._executor = executor
        self._clock = clock
        self._max_silence = max_silence
        self._free_long_slots = max_long
        self._queued_long_calls: deque[Callable[[], None]] = deque()
        self._running: set[ObjectCall] = set()
        self._moved_bytes = 0
        """Bytes of finished calls, plus a bonus for each that succeeded."""

    async def run(
        self,
        work: Callable[[ObjectCall], T],
        on_late_result: Callable[[T], None] | None = None,
        *,
        is_long: bool = False,
    ) -> T:
        """Return what `work` returns, or raise what it raises; ObjectStoreFailed if the store is
        silent for too long.

        `on_late_result` gets, on the reactor's thread, a result that arrives when nobody waits any
        more.
        """
        call = ObjectCall(self._clock)
        result_deferred: Deferred[T] = Deferred()

        def job() -> None:
            result: T | Failure
            self._executor.deliver(on_start)
            try:
                call.record(0)
                result = work(call)
            except BaseException as error:  # the caller gets it; the thread goes on
                result = Failure(error)
            self._executor.deliver(lambda: on_result(result))

        def on_start() -> None:
            call.is_begun = True
            if not call.is_abandoned:
                watch.begin()

        def on_result(result: T | Failure) -> None:
            self._finish(call, is_long, is_well=not isinstance(result, Failure))
            if not call.is_abandoned:
                result_deferred.callback(result)
            elif on_late_result is not None and not isinstance(result, Failure):
                on_late_result(result)

        def give_up() -> None:
            call.is_abandoned = True
            result_deferred.errback(
                ObjectStoreFailed(f"the object store was silent for {self._max_silence:g} seconds")
            )

        watch = _InactivityTimer(
            clock=self._clock,
            max_silence=self._max_silence,
            count=lambda: self._bytes_of(call),
            silent_until=lambda: self._silent_until(call),
            give_up=give_up,
        )
        watch.begin()
        self._start(call, job, is_long)
        try:
            return await result_deferred
        finally:
            call.is_abandoned = True
            watch.end()

    def _bytes_of(self, call: ObjectCall) -> int:
        """Return the bytes that this call moved or, before it starts, all calls."""
        return (
            call.bytes
            if call.is_begun
            else self._moved_bytes + sum(each.bytes for each in self._running)
        )

    def _silent_until(self, call: ObjectCall) -> float:
        """Return until when silence is expected of this call or, before it starts, of all calls."""
        return max(
            (each.silent_until for each in ([call] if call.is_begun else self._running)),
            default=0.0,
        )

    def _start(self, call: ObjectCall, job: Callable[[], None], is_long: bool) -> None:
        def begin() -> None:
            self._running.add(call)
            self._executor.submit(job)

        if not is_long:
            begin()
        elif self._free_long_slots:
            self._free_long_slots -= 1
            begin()
        else:
            self._queued_long_calls.append(begin)

    def _finish(self, call: ObjectCall, is_long: bool, *, is_well: bool) -> None:
        self._running.discard(call)
        self._moved_bytes += call.bytes + (MIN_BYTES if is_well else 0)
        if is_long and self._queued_long_calls:
            self._queued_long_calls.popleft()()
        elif is_long:
            self._free_long_slots += 1


class _InactivityTimer:
    """Abandons a call whose bytes do not move."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        max_silence: float,
        count: Callable[[], int],
        silent_until: Callable[[], float],
        give_up: Callable[[], None],
    ) -> None:
        """`count`: the bytes moved so far. `silent_until`: when bytes should move again."""
        self._clock = clock
        self._max_silence = max_silence
        self._count = count
        self._silent_until = silent_until
        self._give_up = give_up
        self._timer: IDelayedCall | None = None

    def begin(self) -> None:
        """Start counting now."""
        self.end()
        self._timer = self._clock.callLater(self._max_silence, self._check, self._count())

    def end(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, before: int) -> None:
        self._timer = None
        if self._count() - before >= MIN_BYTES:
            self.begin()
        elif (remaining := self._silent_until() - self._clock.seconds()) > 0:
            self._timer = self._clock.callLater(remaining, self._check, before)
        else:
            self._give_up()
