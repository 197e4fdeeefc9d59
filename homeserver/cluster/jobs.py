"""What the server does unasked: one list of small, named jobs.

A job is a step that is done again and again: it is told how many things to do, and returns how many
it did. A job for which nothing is left rests for its interval.

Laws:
- A step aims at a tenth of a second: after each the size of the next is reckoned anew. Between two
  steps there is a pause at least as long as the step, so that no job takes more than half of the
  writer, and people come first.
- A step commits its work, and what is done is not found again: a job that was interrupted goes on
  where it was.
- A job that fails rests, and goes on later; it harms no other job. The log says so at first, then
  after pauses that double, and when it works again: while the disk is full, all jobs fail.
- On several nodes each does every job: steps are transactions, so that two nodes share the work and
  do none of it twice.
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
from storage.media.folder_lock import FolderGone

STEP_SECONDS: Final = 0.1
"""What a step aims at."""
SHORTEST_PAUSE: Final = 0.1
FIRST_BATCH: Final = 50
LARGEST_BATCH: Final = 5000
LONGEST_REST: Final = 300.0
"""Seconds after which a job that failed is tried again at the latest."""
FIRST_SILENCE: Final = 60.0
LONGEST_SILENCE: Final = 6 * 3600.0
"""Seconds between two lines about a job that goes on failing in the same way."""
MOST_KINDS: Final = 20
"""Ways of failing that are told apart."""
MOST_FRAMES: Final = 64
"""That are looked at for that: what is raised again and again has more each time."""


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
        """Begin. The first steps are spread over the first minute, so that a start is not slowed
        down."""
        for number, runner in enumerate(self._runners, 1):
            runner.rest(60.0 * number / (len(self._runners) + 1))

    async def stop(self) -> None:
        """Begin no further step; returns when none is running."""
        for runner in self._runners:
            await runner.stop()


_Kind = tuple[type[Exception], frozenset[tuple[str, int]]]
"""A class of errors, and the lines of code by which one came."""


class _Lines(msgspec.Struct):
    """What the log has of failures of one kind."""

    told: float
    silence: float = FIRST_SILENCE


class _Trouble(msgspec.Struct):
    """A job that has failed and not worked since."""

    since: float
    failed: float
    """When it failed last."""
    tries: int = 0
    kinds: LRU[_Kind, _Lines] = msgspec.field(default_factory=lambda: LRU(max_entries=MOST_KINDS))


class _Runner:
    """One job."""

    _log = Logger(namespace="homeserver.jobs")

    def __init__(self, clock: IReactorTime, job: Job, metrics: JobMetrics) -> None:
        self._clock = clock
        self._job = job
        self._batch = FIRST_BATCH
        self._next: IDelayedCall | None = None
        self._running = False
        self._stopped: Deferred[None] | None = None
        self._trouble: _Trouble | None = None
        self._counts = metrics.of(job.name)

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

    def _is_to_tell(self, error: Exception) -> bool:
        """Count a failure; whether there is something new in it, or it was long ago that there was
        a line about it."""
        self._counts.failures += 1
        now = self._clock.seconds()
        trouble = self._trouble = self._trouble or _Trouble(now, now)
        trouble.tries, trouble.failed = trouble.tries + 1, now
        kind = _kind_of(error)
        lines = trouble.kinds.get(kind)
        if lines is None:
            trouble.kinds.put(kind, _Lines(now))
            return True
        if now - lines.told < lines.silence:
            return False
        lines.told, lines.silence = now, min(2 * lines.silence, LONGEST_SILENCE)
        return True

    def _note_success(self) -> None:
        """It works again, unless it failed just now: a job for which there was nothing to write has
        proved nothing."""
        trouble, now = self._trouble, self._clock.seconds()
        if trouble is not None and now - trouble.failed >= FIRST_SILENCE:
            self._trouble = None
            self._log.info(
                "the job {job} works again: it failed {tries} times in {seconds} s",
                job=self._job.name,
                tries=trouble.tries,
                seconds=round(now - trouble.since),
            )

    async def _run(self) -> None:
        """One step; raises nothing."""
        started = self._clock.seconds()
        try:
            done = await self._job.step(self._batch)
        except (DatabaseUnavailable, FolderGone) as error:
            # no bug, and every job notices it: a line is enough
            if self._is_to_tell(error):
                self._log.warn(
                    "the job {job} goes on later: {error}",
                    job=self._job.name,
                    error=str(error).strip(),
                )
            pause = min(self._job.interval, LONGEST_REST)
        except Exception as error:
            if self._is_to_tell(error):
                self._log.failure("the job {job} failed; it goes on later", job=self._job.name)
            pause = min(self._job.interval, LONGEST_REST)
        else:
            self._note_success()
            took = self._clock.seconds() - started
            self._counts.items += done
            self._counts.seconds += took
            if done < self._batch:
                self._counts.finished = self._clock.seconds()
                pause = self._job.interval
            else:
                # At most twice as many as before: one quick step says little of the next.
                fitting = round(self._batch * min(2.0, STEP_SECONDS / max(took, 0.001)))
                self._batch = min(LARGEST_BATCH, max(1, fitting))
                pause = max(SHORTEST_PAUSE, took)
        self._counts.steps += 1
        self._running = False
        if self._stopped is not None:
            self._stopped.callback(None)
        else:
            self.rest(pause)


def _kind_of(error: Exception) -> _Kind:
    frames = islice(walk_tb(error.__traceback__), MOST_FRAMES)
    return type(error), frozenset((frame.f_code.co_filename, line) for frame, line in frames)
