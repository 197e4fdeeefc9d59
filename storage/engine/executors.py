"""Executors run database work in threads, or on the calling thread.

In this module a job is a function that is passed to `submit`. An executor starts jobs in the order
in which they were submitted. With a single thread, jobs run one after the other. A job passes its
result to `deliver`. Results arrive on the reactor thread in the order of these calls. Jobs must not
raise.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

T = TypeVar("T")


class Executor(Protocol):
    """Runs jobs and delivers their results."""

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job`. Called on the reactor thread."""

    def deliver(self, call: Callable[[], None]) -> None:
        """Run `call` on the reactor thread. Called from a job."""

    def close(self) -> Deferred[None]:
        """Close the executor. The Deferred fires when all submitted jobs are done and delivered, or
        after a timeout."""


async def run_in(executor: Executor, work: Callable[[], T]) -> T:
    """Run `work` on the executor and return or raise its result. If the caller is cancelled, the
    work still completes and its result is dropped."""
    deferred: Deferred[T] = Deferred()

    def job() -> None:
        result: T | Failure
        try:
            result = work()
        except BaseException as error:  # any error goes to the caller; the thread goes on
            result = Failure(error)
        executor.deliver(lambda: deferred.callback(result))

    executor.submit(job)
    return await deferred


class InlineExecutor:
    """Runs each job immediately on the calling thread. For tests and command-line tools."""

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def deliver(self, call: Callable[[], None]) -> None:
        call()

    def close(self) -> Deferred[None]:
        return succeed(None)


class _Worker:
    """A worker thread that waits for a job."""

    __slots__ = ("job", "wake")

    def __init__(self) -> None:
        self.job: Callable[[], None] | None = None
        self.wake = threading.Lock()
        self.wake.acquire()


@implementer(IReadDescriptor)
class _Wakeup:
    """Wakes the reactor for one executor through a pipe.

    `callFromThread` does the same for any call. This class has one fixed call, which halves the
    work on both threads. Every write and most reads use it.
    """

    def __init__(self, *, reactor: IReactorFDSet, callback: Callable[[], None]) -> None:
        self._reactor = reactor
        self._callback = callback
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(
            self._read_end, False
        )  # the reactor may report an event of a descriptor that had this number before
        reactor.addReader(self)

    def wake(self) -> None:
        """Wake the reactor. From any thread. Not again before the callback runs, and not after
        `remove`, when the descriptor may belong to something else."""
        os.write(self._write_end, b"x")

    def doRead(self) -> None:
        try:
            os.read(self._read_end, 1)
        except BlockingIOError:
            return  # a spurious event
        self._callback()

    def fileno(self) -> int:
        return self._read_end

    def logPrefix(self) -> str:
        return "-"

    def connectionLost(self, _reason: Failure) -> None:
        """Do nothing: the reactor has stopped."""

    def remove(self) -> None:
        """Remove the pipe from the reactor and close it."""
        self._reactor.removeReader(self)
        os.close(self._read_end)
        os.close(self._write_end)


class ThreadExecutor:
    """A fixed number of threads. The idle thread that worked last works next, because its data is
    in the CPU caches.

    Results that arrive while the reactor is busy are delivered together, with one wake-up.
    """

    _log = Logger()

    def __init__(
        self, *, reactor: ReactorBase, name: str, threads: int, close_timeout: float = 10.0
    ) -> None:
        """`close_timeout` is the number of seconds that `close` waits for running jobs."""
        self._reactor = reactor
        self._wakeup = _Wakeup(reactor=cast(IReactorFDSet, reactor), callback=self._deliver_results)
        self._close_timeout = close_timeout
        self._jobs: deque[Callable[[], None]] = deque()
        self._idle: list[_Worker] = []
        self._closing = False
        self._results: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._is_woken = False
        self._running = threads
        self._ended: Deferred[None] = Deferred()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            if not self._idle:
                self._jobs.append(job)
                return
            worker = self._idle.pop()
        worker.job = job
        worker.wake.release()

    def deliver(self, call: Callable[[], None]) -> None:
        with self._lock:
            # The result and the flag change together. The thread that has to wake the reactor does
            # so before the reactor takes this result, which may remove the pipe.
            self._results.append(call)
            if self._is_woken:
                return
            self._is_woken = True
        self._wakeup.wake()

    def close(self) -> Deferred[None]:
        with self._lock:
            self._closing = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.wake.release()

        def give_up(failure: Failure) -> None:
            failure.trap(TookTooLong)
            self._log.warn(
                "Stopped waiting for database threads after {seconds} s.",
                seconds=self._close_timeout,
            )

        return self._ended.addTimeout(self._close_timeout, self._reactor).addErrback(give_up)

    def _work(self) -> None:
        worker = _Worker()
        while (job := self._next_job(worker)) is not None:
            job()
        self.deliver(self._thread_ended)

    def _next_job(self, worker: _Worker) -> Callable[[], None] | None:
        """Wait for the next job. Return None when the executor is closed."""
        with self._lock:
            if self._jobs:
                return self._jobs.popleft()
            if self._closing:
                return None
            self._idle.append(worker)
        worker.wake.acquire()
        job, worker.job = worker.job, None
        return job

    def _thread_ended(self) -> None:
        self._running -= 1
        if self._running:
            return
        self._wakeup.remove()
        if not self._ended.called:  # `close` may have timed out
            self._ended.callback(None)

    def _deliver_results(self) -> None:
        with self._lock:
            self._is_woken = False  # later results need another wake-up
            results, self._results = self._results, []
        for call in results:
            try:
                call()
            except BaseException:  # the reactor would drop the pipe
                self._log.failure("Could not deliver a database result.")
