"""Executors that run jobs when a test says so."""

from collections.abc import Callable

from storage.engine.executors import InlineExecutor


class ManualExecutor(InlineExecutor):
    """Queues jobs in `jobs` until `work`."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, job: Callable[[], None]) -> None:
        self.jobs.append(job)

    def work(self) -> None:
        """Run the queued jobs, but not the jobs that these submit."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()

    def work_all(self) -> None:
        """Run the queued jobs, and the jobs that these submit."""
        while self.jobs:
            self.jobs.pop(0)()


class PausableExecutor(ManualExecutor):
    """Runs jobs inline. While `is_held`, queues jobs and their results until the next `work`."""

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
