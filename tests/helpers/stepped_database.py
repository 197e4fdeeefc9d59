"""A database whose writes run when a test says so, and writes of jobs."""

from collections.abc import Callable
from typing import Any, Final

from psycopg2.extensions import cursor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from storage.engine.database import PostgresConfig, SQLiteConfig, Transaction, WriteTransaction
from storage.engine.streams import Change, Topic
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.executors import ManualExecutor

INSERT_JOB: Final = "INSERT INTO jobs (name, progress) VALUES (?, ?)"
INSERT_NEW_JOB: Final = f"{INSERT_JOB} ON CONFLICT DO NOTHING"


class SteppedDatabase:
    """A database whose writes wait for `step`, and their results."""

    def __init__(self, config: SQLiteConfig | PostgresConfig) -> None:
        self.writer = ManualExecutor()
        self.observer = QueryCounter()
        self.database = open_inline(config, self.observer, self.writer, clock=lambda: 0.0)
        self.results: dict[str, object] = {}

    def queue(self, name: str, fn: Callable[[WriteTransaction], Any]) -> None:
        """Start a write. `results` gets its result, or the type of its error."""
        deferred: Deferred[Any] = Deferred.fromCoroutine(self.database.write(name, fn))

        def done(result: object) -> None:
            self.results[name] = type(result.value) if isinstance(result, Failure) else result

        deferred.addBoth(done)

    def step(self) -> None:
        """Run the queued writes."""
        self.writer.run()

    def names(self) -> list[str]:
        """Return the names of the stored jobs."""
        found: list[str] = []

        async def read() -> None:
            found.extend(await self.database.read("names", select_job_names))

        run_coroutine(read(), None)
        return found


def select_job_names(txn: Transaction) -> list[str]:
    """Return the names of the stored jobs."""
    return [name for (name,) in txn.query("SELECT name FROM jobs ORDER BY name")]


def insert_job(
    name: str, fail: bool = False, positions: int = 1
) -> Callable[[WriteTransaction], int]:
    """Return a write that inserts a job, takes positions and returns the first one."""

    def fn(txn: WriteTransaction) -> int:
        txn.execute("INSERT INTO jobs (name, progress) VALUES (?, ?)", (name, ""))
        first = txn.next_position(positions)
        for position in range(first, first + positions):
            txn.announce(Change(position, Topic.PROFILE, user_id=name))
        if fail:
            raise ValueError(name)
        return first

    return fn


class CountingCursor(cursor):
    """Counts the messages to the server, and stores the last one."""

    messages = 0
    last = b""

    def execute(self, query: Any, vars: Any = None) -> None:
        CountingCursor.messages += 1
        CountingCursor.last = query if isinstance(query, bytes) else query.encode()
        super().execute(query, vars)


def write_now(node: SteppedDatabase, name: str, fn: Callable[[WriteTransaction], Any]) -> object:
    """Run a write; return its result, or the type of its error."""
    node.queue(name, fn)
    node.step()
    return node.results[name]


def insert_job_later(name: str) -> Callable[[WriteTransaction], int]:
    """Return a write that inserts a job by a deferred statement."""

    def fn(txn: WriteTransaction) -> int:
        txn.execute_later("INSERT INTO jobs (name, progress) VALUES (?, 'here')", (name,))
        position = txn.next_position()
        txn.announce(Change(position, Topic.PROFILE, user_id=name))
        return position

    return fn
