"""Thread executors: order, concurrency, delivery of results, and closing."""

import os
import threading
import time
from collections.abc import Callable
from select import select
from typing import cast

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock

from storage.engine.executors import (
    ThreadExecutor,
    _Worker,  # private: the type of an argument of the patched method
)


class SteppedReactor(Clock):
    """A reactor whose reactor the test runs: results are delivered when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[IReadDescriptor] = []

    def addReader(self, reader: IReadDescriptor) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        self.readers.remove(reader)

    def turn(self, timeout: float = 60) -> bool:
        """Wait until a descriptor is readable, and read it. Return False if none is within
        `timeout`."""
        ready, _, _ = select(self.readers, [], [], timeout)
        for reader in ready:
            reader.doRead()
        return bool(ready)


def open_executor(threads: int) -> tuple[ThreadExecutor, SteppedReactor]:
    reactor = SteppedReactor()
    return ThreadExecutor(reactor=cast(ReactorBase, reactor), name="test", threads=threads), reactor


def close(executor: ThreadExecutor, reactor: SteppedReactor) -> None:
    ended: list[object] = []
    executor.close().addBoth(ended.append)
    (wakeup,) = reactor.readers
    descriptor = wakeup.fileno()
    while not ended:
        assert reactor.turn()
    assert ended == [None]
    assert not reactor.readers
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_one_thread_runs_jobs_in_order_and_all_before_closing() -> None:
    executor, reactor = open_executor(1)
    done: list[int] = []
    delivered: list[int] = []
    for number in range(100):

        def job(number: int = number) -> None:
            done.append(number)
            executor.deliver(lambda: delivered.append(number))

        executor.submit(job)
    close(executor, reactor)
    assert done == delivered == list(range(100))


def test_jobs_run_concurrently_in_all_threads() -> None:
    executor, reactor = open_executor(3)
    meeting = threading.Barrier(3)
    for _ in range(6):
        executor.submit(lambda: cast(None, meeting.wait(timeout=60)))
    close(executor, reactor)
    assert not meeting.broken


def test_the_thread_that_worked_last_works_next() -> None:
    executor, reactor = open_executor(8)
    workers: list[int] = []

    def job() -> None:
        me = threading.get_ident()
        executor.deliver(lambda: workers.append(me))

    for _ in range(30):
        while len(executor._idle) < 8:  # private: nothing else says that a thread waits
            time.sleep(0.001)  # not all threads are idle yet
        executor.submit(job)
        assert reactor.turn()
    close(executor, reactor)
    assert len(workers) == 30
    assert len(set(workers)) == 1


def test_results_that_arrive_while_the_reactor_is_busy_are_delivered_together() -> None:
    executor, reactor = open_executor(1)
    delivered: list[str] = []
    done = threading.Semaphore(0)

    def fail() -> None:
        delivered.append("fails")
        raise ValueError("one callback fails")

    def job(name: str) -> None:
        executor.deliver(fail if name == "fails" else lambda: deliver(name))
        done.release()

    def deliver(name: str) -> None:
        delivered.append(name)
        if name == "second":
            executor.submit(lambda: job("third"))
            assert done.acquire(timeout=60), "it arrived while the others were delivered"

    for name in ("first", "fails", "second"):
        executor.submit(lambda name=name: job(name))  # type: ignore[misc]
    for _ in range(3):
        assert done.acquire(timeout=60)
    assert delivered == []
    assert reactor.turn()
    assert delivered == ["first", "fails", "second"]
    assert reactor.turn(), "results that arrived meanwhile wake the reactor again"
    assert delivered[3:] == ["third"]
    assert not reactor.turn(0)
    close(executor, reactor)


def test_the_pipe_is_not_written_after_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reactor may close the pipe with the last thread's result, while it handles the wake-up of
    another. The descriptor may then belong to a file."""
    reactor = SteppedReactor()
    executor = ThreadExecutor(reactor=cast(ReactorBase, reactor), name="closing", threads=1)
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    lock = executor._lock  # private: the race is between two statements of a thread
    next_job = executor._next_job  # private: as above
    is_last = threading.Event()

    class Lock:
        """Gives the reactor a turn when the thread is about to deliver its end."""

        def __enter__(self) -> None:
            if is_last.is_set():
                is_last.clear()
                assert reactor.turn(0), "the wake-up of another result"
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    def next_or_last(worker: _Worker) -> Callable[[], None] | None:
        job = next_job(worker)
        if job is None:
            is_last.set()
        return job

    monkeypatch.setattr(executor, "_lock", Lock())  # private: as above
    monkeypatch.setattr(executor, "_next_job", next_or_last)  # private: as above
    ended: list[object] = []
    may_end = threading.Event()

    def job() -> None:
        may_end.wait(60)
        executor.deliver(lambda: None)

    (thread,) = [each for each in threading.enumerate() if each.name == "closing-0"]
    executor.submit(job)
    executor.close().addBoth(ended.append)
    may_end.set()
    thread.join(60)
    while not ended:
        assert reactor.turn()
    assert not reactor.readers
    assert not failed


def test_a_thread_that_ends_after_the_close_timeout_closes_the_pipe() -> None:
    executor, reactor = open_executor(1)
    going_on = threading.Event()
    executor.submit(lambda: cast(None, going_on.wait(60)))
    ended: list[object] = []
    executor.close().addBoth(ended.append)
    (wakeup,) = reactor.readers
    reactor.advance(11)
    assert ended == [None]
    assert reactor.readers == [wakeup], "the thread still runs"
    descriptor = wakeup.fileno()
    going_on.set()
    assert reactor.turn()
    assert not reactor.readers
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_spurious_read_event_does_not_block_the_reactor() -> None:
    """Happens if a connection with the same descriptor number was readable and was closed in the
    same turn."""
    executor, reactor = open_executor(1)
    (wakeup,) = reactor.readers
    wakeup.doRead()
    delivered: list[int] = []
    executor.submit(lambda: executor.deliver(lambda: delivered.append(1)))
    assert reactor.turn()
    assert delivered == [1]
    close(executor, reactor)


def test_the_reactor_keeps_reading_whatever_a_callback_raises() -> None:
    executor, reactor = open_executor(1)
    delivered: list[int] = []

    def job() -> None:
        executor.deliver(fail)
        executor.deliver(lambda: delivered.append(1))

    def fail() -> None:
        raise SystemExit("a callback exits")

    executor.submit(job)
    while not delivered:
        assert reactor.turn()
    close(executor, reactor)
