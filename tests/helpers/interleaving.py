"""A database whose jobs and results interleave in random order, as with threads.

turns = Turns()
database = turns.open(config)
…  # everything runs inline
turns.begin(Random(7))
pending = user.start("PUT", …)
turns.step()  # run one of the pending jobs or results
turns.end()
"""

from collections import deque
from collections.abc import Callable
from random import Random

from twisted.internet.defer import Deferred, succeed

from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from tests.helpers.databases import open_inline

Job = Callable[[], None]


class _InterleavingExecutor:
    """An executor that stands for the reader threads or for the writer thread."""

    def __init__(self, *, in_order: bool) -> None:
        self.chance: Random | None = None
        """None: run everything inline."""
        self._in_order = in_order
        self._jobs: deque[Job] = deque()
        self._results: deque[Job] = deque()
        """Pending results, in the order of their delivery by this executor."""

    def submit(self, job: Job) -> None:
        if self.chance is None:
            job()
        else:
            self._jobs.append(job)

    def deliver(self, call: Job) -> None:
        if self.chance is None:
            call()
        else:
            self._results.append(call)

    def close(self) -> Deferred[None]:
        return succeed(None)

    def steps(self) -> list[Job]:
        """Return the possible next steps."""
        return [
            *([self._work] if self._jobs else ()),
            *([self._deliver_result] if self._results else ()),
        ]

    def _work(self) -> None:
        if self.chance is not None and not self._in_order:
            self._jobs.rotate(self.chance.randrange(len(self._jobs)))
        self._jobs.popleft()()

    def _deliver_result(self) -> None:
        self._results.popleft()()


class Interleaving:
    """The executors of one database."""

    def __init__(self) -> None:
        self._readers, self._writer = (
            _InterleavingExecutor(in_order=False),
            _InterleavingExecutor(in_order=True),
        )

    def open(self, config: SQLiteConfig | PostgresConfig) -> Database:
        """Open the database. The schema must exist."""
        return open_inline(config, writer=self._writer, readers=self._readers)

    def begin(self, chance: Random) -> None:
        """Queue jobs and results until `step`."""
        self._readers.chance = self._writer.chance = chance

    def step(self) -> bool:
        """Run one pending job or result. Return whether there was one."""
        chance, steps = self._readers.chance, [*self._readers.steps(), *self._writer.steps()]
        if chance is None or not steps:
            return False
        chance.choice(steps)()
        return True

    def end(self) -> None:
        """Run all pending jobs and results, then run everything inline."""
        while self.step():
            pass
        self._readers.chance = self._writer.chance = None
