"""Threads that do storage's work."""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import cast

from twisted.internet.base import ReactorBase
from twisted.internet.task import Clock

from storage.executors import ThreadExecutor


class Turns(Clock):
    """Stands for a reactor: what threads call is run when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.from_threads: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def callFromThread(self, call: Callable[[], None]) -> None:
        self.from_threads.put(call)


def open_executor(threads: int) -> tuple[ThreadExecutor, Turns]:
    turns = Turns()
    return ThreadExecutor(cast(ReactorBase, turns), "test", threads), turns


def close(executor: ThreadExecutor, turns: Turns) -> None:
    ended: list[object] = []
    executor.close().addBoth(ended.append)
    while not ended:
        turns.from_threads.get(timeout=60)()
    assert ended == [None]


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
        turns.from_threads.get(timeout=60)()
    close(executor, turns)
    assert len(workers) == 30
    assert len(set(workers)) == 1
