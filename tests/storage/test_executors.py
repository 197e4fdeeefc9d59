"""Threads that do storage's work."""

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

from storage.engine.executors import ThreadExecutor, _Worker


class Turns(Clock):
    """Stands for a reactor: what threads deliver is done when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[IReadDescriptor] = []

    def addReader(self, reader: IReadDescriptor) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        self.readers.remove(reader)

    def turn(self, patience: float = 60) -> bool:
        """Wait until something can be read, and let it be read; False if there is nothing for so
        long."""
        ready, _, _ = select(self.readers, [], [], patience)
        for reader in ready:
            reader.doRead()
        return bool(ready)


def open_executor(threads: int) -> tuple[ThreadExecutor, Turns]:
    turns = Turns()
    return ThreadExecutor(cast(ReactorBase, turns), "test", threads), turns


def close(executor: ThreadExecutor, turns: Turns) -> None:
    ended: list[object] = []
    executor.close().addBoth(ended.append)
    (bell,) = turns.readers
    descriptor = bell.fileno()
    while not ended:
        assert turns.turn()
    assert ended == [None]
    assert not turns.readers
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_jobs_of_one_thread_are_done_in_their_order_and_all_before_the_end() -> None:
    executor, turns = open_executor(1)
    done: list[int] = []
    delivered: list[int] = []
    for number in range(100):

        def job(number: int = number) -> None:
            done.append(number)
            executor.deliver(lambda: delivered.append(number))

        executor.submit(job)
    close(executor, turns)
    assert done == delivered == list(range(100))


def test_jobs_run_beside_each_other_in_as_many_threads_as_there_are() -> None:
    executor, turns = open_executor(3)
    meeting = threading.Barrier(3)
    for _ in range(6):
        executor.submit(lambda: cast(None, meeting.wait(timeout=60)))
    close(executor, turns)
    assert not meeting.broken


def test_the_thread_that_worked_last_works_next() -> None:
    executor, turns = open_executor(8)
    workers: list[int] = []

    def job() -> None:
        me = threading.get_ident()
        executor.deliver(lambda: workers.append(me))

    for _ in range(30):
        while len(executor._idle) < 8:
            time.sleep(0.001)  # not all rest yet
        executor.submit(job)
        assert turns.turn()
    close(executor, turns)
    assert len(workers) == 30
    assert len(set(workers)) == 1


def test_what_comes_while_the_reactor_is_busy_is_delivered_together_and_what_comes_then_later() -> (
    None
):
    executor, turns = open_executor(1)
    delivered: list[str] = []
    done = threading.Semaphore(0)

    def fail() -> None:
        delivered.append("fails")
        raise ValueError("what one does harms no other")

    def job(name: str) -> None:
        executor.deliver(fail if name == "fails" else lambda: deliver(name))
        done.release()

    def deliver(name: str) -> None:
        delivered.append(name)
        if name == "second":
            executor.submit(lambda: job("third"))
            assert done.acquire(timeout=60), "it came while the others were delivered"

    for name in ("first", "fails", "second"):
        executor.submit(lambda name=name: job(name))  # type: ignore[misc]
    for _ in range(3):
        assert done.acquire(timeout=60)
    assert delivered == []
    assert turns.turn()
    assert delivered == ["first", "fails", "second"]
    assert turns.turn(), "what came meanwhile wakes the reactor anew"
    assert delivered[3:] == ["third"]
    assert not turns.turn(0)
    close(executor, turns)


def test_nothing_is_rung_once_the_bell_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reactor may take what the last thread has to say while another's ringing is answered: its
    number may be a file's then."""
    turns = Turns()
    executor = ThreadExecutor(cast(ReactorBase, turns), "rung", 1)
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    lock = executor._lock
    next_job = executor._next_job
    is_last = threading.Event()

    class Lock:
        """Lets the reactor have a turn when the thread is about to tell that it ends."""

        def __enter__(self) -> None:
            if is_last.is_set():
                is_last.clear()
                assert turns.turn(0), "another's ringing"
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    def next_or_last(worker: _Worker) -> Callable[[], None] | None:
        job = next_job(worker)
        if job is None:
            is_last.set()
        return job

    monkeypatch.setattr(executor, "_lock", Lock())
    monkeypatch.setattr(executor, "_next_job", next_or_last)
    ended: list[object] = []
    may_end = threading.Event()

    def job() -> None:
        may_end.wait(60)
        executor.deliver(lambda: None)

    (thread,) = [each for each in threading.enumerate() if each.name == "rung-0"]
    executor.submit(job)
    executor.close().addBoth(ended.append)
    may_end.set()
    thread.join(60)
    while not ended:
        assert turns.turn()
    assert not turns.readers
    assert not failed


def test_a_thread_that_ends_after_nobody_waits_takes_its_bell_with_it() -> None:
    executor, turns = open_executor(1)
    going_on = threading.Event()
    executor.submit(lambda: cast(None, going_on.wait(60)))
    ended: list[object] = []
    executor.close().addBoth(ended.append)
    (bell,) = turns.readers
    turns.advance(11)
    assert ended == [None]
    assert turns.readers == [bell], "the thread goes on"
    descriptor = bell.fileno()
    going_on.set()
    assert turns.turn()
    assert not turns.readers
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_bell_that_has_not_rung_keeps_nobody() -> None:
    """As when a connection that is closed in a turn of the reactor had its number, and something to
    read."""
    executor, turns = open_executor(1)
    (bell,) = turns.readers
    bell.doRead()
    delivered: list[int] = []
    executor.submit(lambda: executor.deliver(lambda: delivered.append(1)))
    assert turns.turn()
    assert delivered == [1]
    close(executor, turns)


def test_whatever_a_result_raises_the_reactor_goes_on_reading() -> None:
    executor, turns = open_executor(1)
    delivered: list[int] = []

    def job() -> None:
        executor.deliver(fail)
        executor.deliver(lambda: delivered.append(1))

    def fail() -> None:
        raise SystemExit("a hook wanted it")

    executor.submit(job)
    while not delivered:
        assert turns.turn()
    close(executor, turns)
