"""A database whose work and whose answers come in any order that threads may bring about: which, is
left to chance.

turns = Turns()
database = turns.open(config)
…  # everything is done at once
turns.begin(Random(7))
pending = user.start("PUT", …)
turns.step()  # one thing of all that waits is done
turns.end()
"""

from collections import deque
from collections.abc import Callable
from random import Random

from twisted.internet.defer import Deferred, succeed

from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from tests.helpers.databases import open_inline

Job = Callable[[], None]


class _InTurn:
    """Threads that read, or the one that writes: an executor."""

    def __init__(self, *, in_order: bool) -> None:
        self.chance: Random | None = None
        """None: everything is done at once."""
        self._in_order = in_order
        self._jobs: deque[Job] = deque()
        self._results: deque[Job] = deque()
        """They come in the order in which they were delivered, whatever those of others do."""

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
        """The steps that may be done next."""
        return [*([self._work] if self._jobs else ()), *([self._bring] if self._results else ())]

    def _work(self) -> None:
        if self.chance is not None and not self._in_order:
            self._jobs.rotate(self.chance.randrange(len(self._jobs)))
        self._jobs.popleft()()

    def _bring(self) -> None:
        self._results.popleft()()


class Turns:
    """The threads of one database."""

    def __init__(self) -> None:
        self._readers, self._writer = _InTurn(in_order=False), _InTurn(in_order=True)

    def open(self, config: SQLiteConfig | PostgresConfig) -> Database:
        """The database. The schema is there already."""
        return open_inline(config, writer=self._writer, readers=self._readers)

    def begin(self, chance: Random) -> None:
        """From now on things wait for their turn."""
        self._readers.chance = self._writer.chance = chance

    def step(self) -> bool:
        """Do one thing; whether there was any."""
        chance, steps = self._readers.chance, [*self._readers.steps(), *self._writer.steps()]
        if chance is None or not steps:
            return False
        chance.choice(steps)()
        return True

    def end(self) -> None:
        """Do all that waits; from now on everything is done at once."""
        while self.step():
            pass
        self._readers.chance = self._writer.chance = None
