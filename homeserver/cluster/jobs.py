"""Runs the server's background jobs. Each job has a name and works in small, repeated steps.

A step gets the largest number of items to process (its batch size), and returns how many it
processed. A job without pending items sleeps for its interval.

Laws:

- A step should take a tenth of a second, and the batch size is adjusted for that. While items are
  pending, the pause after a step is at least as long as the step took. So a job uses at most half
  of the writer's time.
- A step commits its work, and the next step does not find the finished items again. So an
  interrupted job continues where it stopped.
- A failed job sleeps, retries later, and does not affect other jobs.
- The first failure of each kind is logged, and further ones at intervals that double. When the job
  works again, that is logged too. So a full disk, which makes all jobs fail, does not flood the
  log.
- Every node runs all jobs. A step does not find the items that another node has finished, so the
  nodes share the work. If two nodes process the same item, their write transactions run one after
  the other, and only the first changes it.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from traceback import walk_tb
from typing import Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from homeserver.observe.metrics import JobMetrics
from storage.cache import LRU
from storage.engine.interface import DatabaseUnavailable
from storage.media.folder_lock import FolderMissing

STEP_SECONDS: Final = 0.1
"""The target duration of a step."""
MIN_PAUSE: Final = 0.1
FIRST_BATCH: Final = 50
MAX_BATCH: Final = 5000
MAX_RETRY_SECONDS: Final = 300.0
"""The longest time in seconds until a failed job is retried."""
FIRST_LOG_INTERVAL: Final = 60.0
MAX_LOG_INTERVAL: Final = 6 * 3600.0
"""The time in seconds between two log lines about a job that keeps failing in the same way."""
MAX_FAILURE_KINDS: Final = 20
"""The number of failure kinds that are distinguished."""
MAX_FRAMES: Final = 64
"""The number of stack frames that distinguish them: errors that are re-raised repeatedly have more
each time."""


class Job(msgspec.Struct, frozen=True):
    """A background task that runs at intervals."""

    name: str
    step: Callable[[int], Awaitable[int]]
    """Processes up to this many items and returns how many. Fewer means that no more are
    pending."""
    interval: float
    """The time in seconds between the last step and the next check."""


class Jobs:
    """Runs jobs, each with its own timer, from `start` to `stop`."""

    def __init__(self, *, clock: IReactorTime, jobs: Sequence[Job], metrics: JobMetrics) -> None:
        self._runners = [_Runner(clock=clock, job=job, metrics=metrics) for job in jobs]

    def start(self) -> None:
        """Start the jobs. The first steps are spread over a minute, so that they do not slow down
        the start."""
        for number, runner in enumerate(self._runners, 1):
            runner.schedule(60.0 * number / (len(self._runners) + 1))

    async def stop(self) -> None:
        """Start no further step, and wait for running ones."""
        for runner in self._runners:
            await runner.stop()


_Kind = tuple[type[Exception], frozenset[tuple[str, int]]]
"""The kind of a failure: the class of the error, and the code lines that raised it."""


class _LogState(msgspec.Struct):
    """The log state of one kind of failure."""

    logged: float
    interval: float = FIRST_LOG_INTERVAL


class _Failing(msgspec.Struct):
    """A job that has failed and not succeeded since."""

    since: float
    failed: float
    """When it failed last."""
    tries: int = 0
    kinds: LRU[_Kind, _LogState] = msgspec.field(
        default_factory=lambda: LRU(max_entries=MAX_FAILURE_KINDS)
    )


class _Runner:
    """The timer and state of one job."""

    _log = Logger(namespace="homeserver.jobs")

    def __init__(self, *, clock: IReactorTime, job: Job, metrics: JobMetrics) -> None:
        self._clock = clock
        self._job = job
        self._batch = FIRST_BATCH
        self._next: IDelayedCall | None = None
        self._running = False
        self._stopped: Deferred[None] | None = None
        self._failing: _Failing | None = None
        self._counts = metrics.counts_of(job.name)

    def schedule(self, seconds: float) -> None:
        """Run the next step after a pause."""
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

    def _should_log(self, error: Exception) -> bool:
        """Count a failure. Return whether it should be logged: it is new, or the last line is long
        ago."""
        self._counts.failures += 1
        now = self._clock.seconds()
        failing = self._failing = self._failing or _Failing(now, now)
        failing.tries, failing.failed = failing.tries + 1, now
        kind = _failure_kind(error)
        state = failing.kinds.get(kind)
        if state is None:
            failing.kinds.put(kind, _LogState(now))
            return True
        if now - state.logged < state.interval:
            return False
        state.logged, state.interval = now, min(2 * state.interval, MAX_LOG_INTERVAL)
        return True

    def _record_success(self) -> None:
        """Log that the job works again, unless it failed recently: a step without pending items
        proves nothing."""
        failing, now = self._failing, self._clock.seconds()
        if failing is not None and now - failing.failed >= FIRST_LOG_INTERVAL:
            self._failing = None
            self._log.info(
                "the job {job} works again: it failed {tries} times in {seconds} s",
                job=self._job.name,
                tries=failing.tries,
                seconds=round(now - failing.since),
            )

    async def _run(self) -> None:
        """Run one step. Raises nothing."""
        started = self._clock.seconds()
        try:
            done = await self._job.step(self._batch)
        except (DatabaseUnavailable, FolderMissing) as error:
            # not a bug, and every job notices it, so one line without a traceback is enough
            if self._should_log(error):
                self._log.warn(
                    "the job {job} will be retried later: {error}",
                    job=self._job.name,
                    error=str(error).strip(),
                )
            pause = min(self._job.interval, MAX_RETRY_SECONDS)
        except Exception as error:
            if self._should_log(error):
                self._log.failure(
                    "the job {job} failed; it will be retried later", job=self._job.name
                )
            pause = min(self._job.interval, MAX_RETRY_SECONDS)
        else:
            self._record_success()
            elapsed = self._clock.seconds() - started
            self._counts.items += done
            self._counts.seconds += elapsed
            if done < self._batch:
                self._counts.finished = self._clock.seconds()
                pause = self._job.interval
            else:
                # At most double the batch: one quick step says little about the next.
                batch = round(self._batch * min(2.0, STEP_SECONDS / max(elapsed, 0.001)))
                self._batch = min(MAX_BATCH, max(1, batch))
                pause = max(MIN_PAUSE, elapsed)
        self._counts.steps += 1
        self._running = False
        if self._stopped is not None:
            self._stopped.callback(None)
        else:
            self.schedule(pause)


def _failure_kind(error: Exception) -> _Kind:
    frames = islice(walk_tb(error.__traceback__), MAX_FRAMES)
    return type(error), frozenset((frame.f_code.co_filename, line) for frame, line in frames)
