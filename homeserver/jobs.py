"""What the server does unasked: one list of small, named jobs.

A job is a step that is done again and again: it is told how many things to do, and returns how many it did. A job for
which nothing is left rests for its interval.

Laws:
- A step aims at a tenth of a second: after each the size of the next is reckoned anew. Between two steps there is a pause
  at least as long as the step, so that no job takes more than half of the writer, and people come first.
- A step commits its work, and what is done is not found again: a job that was interrupted goes on where it was.
- A job that fails is logged, rests, and goes on later; it harms no other job. One that is done every second rests longer each time
  it fails, up to half a minute: an outage of the database does not fill the log.
- On several nodes each does every job: steps are transactions, so that two nodes share the work and do none of it twice.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from homeserver.observe.metrics import JobMetrics
from storage.engine import DatabaseUnavailable

STEP_SECONDS: Final = 0.1
"""What a step aims at."""
SHORTEST_PAUSE: Final = 0.1
FIRST_BATCH: Final = 50
LARGEST_BATCH: Final = 5000
RESTS_GROW_TO: Final = 30.0
"""Seconds to which the rest of a job that fails again and again is doubled, where its interval is shorter."""
LONGEST_REST: Final = 300.0
"""Seconds after which a job that failed is tried again at the latest."""


class Job(msgspec.Struct, frozen=True):
    """Something to be done at intervals."""

    name: str
    step: Callable[[int], Awaitable[int]]
    """Does up to so many things; how many it did. Fewer: nothing is left for now."""
    interval: float
    """Seconds between the last step and looking again."""


class Jobs:
    """Runs jobs, each on a timer of its own, from `start` to `stop`."""

    def __init__(self, clock: IReactorTime, jobs: Sequence[Job], metrics: JobMetrics) -> None:
        self._runners = [_Runner(clock, job, metrics) for job in jobs]

    def start(self) -> None:
        """Begin. The first steps are spread over the first minute, so that a start is not slowed down."""
        for number, runner in enumerate(self._runners, 1):
            runner.rest(60.0 * number / (len(self._runners) + 1))

    async def stop(self) -> None:
        """Begin no further step; returns when none is running."""
        for runner in self._runners:
            await runner.stop()


class _Runner:
    """One job."""

    _log = Logger(namespace="homeserver.jobs")

    def __init__(self, clock: IReactorTime, job: Job, metrics: JobMetrics) -> None:
        self._clock = clock
        self._job = job
        self._batch = FIRST_BATCH
        self._failed_in_turn = 0
        self._next: IDelayedCall | None = None
        self._running = False
        self._stopped: Deferred[None] | None = None
        self._steps = metrics.steps.labels(job.name)
        self._failures = metrics.failures.labels(job.name)
        self._items = metrics.items.labels(job.name)
        self._seconds = metrics.seconds.labels(job.name)
        self._finished = metrics.finished.labels(job.name)

    def rest(self, seconds: float) -> None:
        """Do the next step after so long."""
        self._next = self._clock.callLater(seconds, self._begin)

    async def stop(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._running:
            self._stopped = Deferred()
            await self._stopped

    def _begin(self) -> None:
        self._next = None
        self._running = True
        Deferred.fromCoroutine(self._run())

    def _rest_after_failure(self) -> float:
        """Count it; how long to wait."""
        self._failures.inc()
        doubled = self._job.interval * (1 << min(self._failed_in_turn, 10))
        self._failed_in_turn += 1
        return min(max(self._job.interval, min(doubled, RESTS_GROW_TO)), LONGEST_REST)

    async def _run(self) -> None:
        """One step; raises nothing."""
        started = self._clock.seconds()
        try:
            done = await self._job.step(self._batch)
        except DatabaseUnavailable as error:
            # no bug, and every job notices it: a line is enough
            self._log.warn("the job {job} goes on later: {error}", job=self._job.name, error=str(error).strip())
            pause = self._rest_after_failure()
        except Exception:
            self._log.failure("the job {job} failed; it goes on later", job=self._job.name)
            pause = self._rest_after_failure()
        else:
            took = self._clock.seconds() - started
            self._failed_in_turn = 0
            self._items.inc(done)
            self._seconds.inc(took)
            if done < self._batch:
                self._finished.set(self._clock.seconds())
                pause = self._job.interval
            else:
                # At most twice as many as before: one quick step says little of the next.
                fitting = round(self._batch * min(2.0, STEP_SECONDS / max(took, 0.001)))
                self._batch = min(LARGEST_BATCH, max(1, fitting))
                pause = max(SHORTEST_PAUSE, took)
        self._steps.inc()
        self._running = False
        if self._stopped is not None:
            self._stopped.callback(None)
        else:
            self.rest(pause)
