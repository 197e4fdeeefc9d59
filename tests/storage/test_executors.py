"""Threads that do storage's work."""

import os
import threading
import time
from select import select
from typing import cast

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock

from storage.executors import ThreadExecutor


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
        """Wait until something can be read, and let it be read; False if there is nothing for so long."""
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


def test_what_comes_while_the_reactor_is_busy_is_delivered_together_and_what_comes_then_later() -> None:
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
