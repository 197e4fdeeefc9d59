"""Where storage's work is done: in threads, or at once.

An executor runs jobs in the order in which they were submitted (with one thread: one after the
other) and brings results back to the reactor's thread in the order in which they were delivered.
Jobs may not raise.
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
    """Runs jobs, and brings what comes of them back."""

    def submit(self, job: Callable[[], None]) -> None:
        """From the reactor's thread: run `job`."""

    def deliver(self, call: Callable[[], None]) -> None:
        """From a job: run `call` on the reactor's thread."""

    def close(self) -> Deferred[None]:
        """Fires when all that was submitted is done and delivered, or when waiting longer makes no
        sense."""


async def run_in(executor: Executor, work: Callable[[], T]) -> T:
    """What `work` returns or raises. Whoever waits may be cancelled; the work goes on then, and
    nobody hears of it."""
    deferred: Deferred[T] = Deferred()

    def job() -> None:
        result: T | Failure
        try:
            result = work()
        except BaseException as error:  # whatever it is, the caller gets it; the thread goes on
            result = Failure(error)
        executor.deliver(lambda: deferred.callback(result))

    executor.submit(job)
    return await deferred


class InlineExecutor:
    """Does everything at once, on the thread that asks: for tests and for command-line tools."""

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def deliver(self, call: Callable[[], None]) -> None:
        call()

    def close(self) -> Deferred[None]:
        return succeed(None)


class _Worker:
    """One thread, as far as others hand it jobs."""

    __slots__ = ("job", "wake")

    def __init__(self) -> None:
        self.job: Callable[[], None] | None = None
        self.wake = threading.Lock()
        self.wake.acquire()


@implementer(IReadDescriptor)
class _Bell:
    """Wakes the reactor for one executor. As `callFromThread` does for all the world, but what is
    to be done then is known, and takes half as many steps on either side; every write and most
    reads of the database go this way."""

    def __init__(self, reactor: IReactorFDSet, answer: Callable[[], None]) -> None:
        self._reactor = reactor
        self._answer = answer
        self._reading, self._writing = os.pipe()
        os.set_blocking(
            self._reading, False
        )  # a reactor may be told of what was at this number before
        reactor.addReader(self)

    def ring(self) -> None:
        """From any thread, not again before the answer, and not after `remove`: the number may be
        somebody else's then."""
        os.write(self._writing, b"x")

    def doRead(self) -> None:
        try:
            os.read(self._reading, 1)
        except BlockingIOError:
            return  # it has not rung
        self._answer()

    def fileno(self) -> int:
        return self._reading

    def logPrefix(self) -> str:
        return "-"

    def connectionLost(self, _reason: Failure) -> None:
        """The reactor has stopped, and listens to nobody any more."""

    def remove(self) -> None:
        """It rings no more."""
        self._reactor.removeReader(self)
        os.close(self._reading)
        os.close(self._writing)


class ThreadExecutor:
    """A fixed number of threads. Of those that are idle the one that worked last works next: what
    it needs is in the caches.

    Results that come while the reactor is busy are delivered together: one wake-up of the reactor
    for all of them.
    """

    _log = Logger()

    def __init__(
        self, reactor: ReactorBase, name: str, threads: int, patience: float = 10.0
    ) -> None:
        """`patience`: how many seconds `close` waits for jobs to end."""
        self._reactor = reactor
        self._bell = _Bell(cast(IReactorFDSet, reactor), self._deliver_results)
        self._patience = patience
        self._jobs: deque[Callable[[], None]] = deque()
        self._idle: list[_Worker] = []
        self._closing = False
        self._results: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._woken = False
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
            # Both at once: whoever is to ring does it before the reactor takes what it rings for,
            # which may be the end of the bell.
            self._results.append(call)
            if self._woken:
                return
            self._woken = True
        self._bell.ring()

    def close(self) -> Deferred[None]:
        with self._lock:
            self._closing = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.wake.release()

        def give_up(failure: Failure) -> None:
            failure.trap(TookTooLong)
            self._log.warn(
                "Gave up waiting for work in threads after {seconds} s.", seconds=self._patience
            )

        return self._ended.addTimeout(self._patience, self._reactor).addErrback(give_up)

    def _work(self) -> None:
        worker = _Worker()
        while (job := self._next_job(worker)) is not None:
            job()
        self.deliver(self._thread_ended)

    def _next_job(self, worker: _Worker) -> Callable[[], None] | None:
        """Wait for it; None once there is no more."""
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
        self._bell.remove()
        if not self._ended.called:  # else nobody waits any more
            self._ended.callback(None)

    def _deliver_results(self) -> None:
        with self._lock:
            self._woken = False  # what arrives from now on has its own wake-up
            results, self._results = self._results, []
        for call in results:
            try:
                call()
            except BaseException:  # whatever it is: who raises while it is read is read no more
                self._log.failure("Could not deliver a result of the database.")
