"""Threads that do nothing until a test tells them to."""

from collections.abc import Callable

from storage.engine.executors import InlineExecutor


class LaterExecutor(InlineExecutor):
    """Queues submitted work in `jobs`."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, job: Callable[[], None]) -> None:
        self.jobs.append(job)

    def work(self) -> None:
        """Do what waits now, and not what comes of it."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()

    def work_all(self) -> None:
        """Do all, and what comes of it."""
        while self.jobs:
            self.jobs.pop(0)()


class HeldExecutor(LaterExecutor):
    """Does everything at once, but while it is held: then what comes of a job waits too, and is
    told by the next `work`."""

    is_held = False

    def submit(self, job: Callable[[], None]) -> None:
        super().submit(job)
        if not self.is_held:
            self.work_all()

    def deliver(self, call: Callable[[], None]) -> None:
        if self.is_held:
            super().submit(call)
        else:
            call()
