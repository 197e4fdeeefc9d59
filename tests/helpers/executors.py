"""Executors and threads that run jobs inline, or when a test says so."""

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred

from storage.engine.executors import InlineExecutor

T = TypeVar("T")


class ManualExecutor(InlineExecutor):
    """Queues jobs in `jobs` until the test runs them, so that several writes can be one batch."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, job: Callable[[], None]) -> None:
        self.jobs.append(job)

    def close(self) -> Deferred[None]:
        self.run()
        return super().close()

    def run(self) -> None:
        """Run the queued jobs, and the jobs that these submit."""
        while self.jobs:
            self.jobs.pop(0)()

    def run_queued(self) -> None:
        """Run the queued jobs, but not the jobs that these submit."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()


class PausableExecutor(ManualExecutor):
    """Runs jobs inline. While `is_held`, queues jobs and their results until the next `run`."""

    is_held = False

    def submit(self, job: Callable[[], None]) -> None:
        super().submit(job)
        if not self.is_held:
            self.run()

    def deliver(self, call: Callable[[], None]) -> None:
        if self.is_held:
            super().submit(call)
        else:
            call()


class InlineThreads:
    """Replaces the threads that hash passwords: runs work inline and counts it, or holds it until
    `release`. `meanwhile` is called after the next piece of work."""

    def __init__(self) -> None:
        self.runs = 0
        self.held: list[Deferred[None]] = []
        self.meanwhile: Callable[[], object] | None = None
        self._holds = False

    async def run(self, work: Callable[[], T], asker: str = "") -> T:
        self.runs += 1
        if self._holds:
            self.held.append(Deferred())
            await self.held[-1]
        done = work()
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            happens()
        return done

    def hold(self) -> None:
        """Hold all further work."""
        self._holds = True

    def release(self) -> None:
        """Run the held work, and run further work inline."""
        self._holds = False
        held, self.held = self.held, []
        for waiting in held:
            waiting.callback(None)
