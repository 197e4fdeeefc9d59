"""Failures of one write or of the connection in a batch: the other writes are committed once if
possible, the rest fail soon, and the writer continues."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, cast

import psycopg2
import pytest
from psycopg2.errors import LockNotAvailable
from psycopg2.extensions import cursor

from storage.engine import writer
from storage.engine.database import (
    DatabaseUnavailable,
    PostgresConfig,
    SQLiteConfig,
    WriteTransaction,
    make_engine,
)
from storage.engine.interface import Connection
from storage.engine.postgres import PostgresEngine
from tests.conftest import run_coroutine
from tests.helpers.stepped_database import (
    INSERT_JOB,
    INSERT_NEW_JOB,
    SteppedDatabase,
    insert_job,
    insert_job_later,
    write_now,
)
from tests.helpers.write_faults import UnexpectedError

FAILING: Final = {
    "nonsense": "SELEC 1",
    "cancelled": "SELECT pg_cancel_backend(pg_backend_pid())",
    "too slow": "SET LOCAL statement_timeout = 1; SELECT pg_sleep(60)",
    "full": "DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END $$",
    "locked": "LOCK TABLE devices",
}
ORDERS: Final = [
    ("culprit", "later", "asks"),
    ("later", "culprit", "later"),
    ("asks", "culprit"),
    ("culprit", "asks"),
    ("later", "culprit"),
]


class WaitingCursor(cursor):
    """Counts lock timeouts."""

    waited = 0

    def execute(self, query: Any, vars: Any = None) -> None:
        try:
            super().execute(query, vars)
        except LockNotAvailable:
            WaitingCursor.waited += 1
            raise


def once(name: str) -> Callable[[WriteTransaction], int]:
    """Return a write that depends on the stored rows."""

    def fn(txn: WriteTransaction) -> int:
        assert txn.execute(INSERT_NEW_JOB, (name, ""))
        return txn.next_position()

    return fn


WRITES: Final = {"asks": insert_job, "later": insert_job_later, "once": once}


@pytest.fixture
def other(postgresql: PostgresConfig) -> Iterator[Connection]:
    """Another session on the same database."""
    connection = make_engine(postgresql).connect_writer()
    yield connection
    connection.close()


@pytest.fixture
def node(postgresql: PostgresConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[SteppedDatabase]:
    """A process with a short lock timeout. Nothing else in it depends on the speed of the
    machine."""
    connect = PostgresEngine.open

    def open_counting(engine: PostgresEngine, settings: Any) -> Any:
        opened = connect(engine, {**settings, "idle_in_transaction_session_timeout": 0})
        opened.cursor_factory = WaitingCursor
        return opened

    monkeypatch.setattr(PostgresEngine, "open", open_counting)
    stepped = SteppedDatabase(PostgresConfig(postgresql.connect, write_lock_timeout=0.3))
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0)
    for kind, make in WRITES.items():
        write_now(stepped, kind, make(kind))  # prepares its statements
    write_now(stepped, "clear", lambda txn: txn.execute("DELETE FROM jobs"))
    WaitingCursor.waited = 0
    yield stepped
    run_coroutine(stepped.database.close(), None)


def queue(
    node: SteppedDatabase, order: tuple[str, ...], culprit: Callable[[WriteTransaction], Any]
) -> list[str]:
    """Queue these writes as one batch. Return the names of all but the culprit."""
    names = []
    for number, kind in enumerate(order):
        if kind == "culprit":
            node.queue("culprit", culprit)
        else:
            names.append(f"{number} {kind}")
            node.queue(names[-1], WRITES[kind](names[-1]))
    return names


@pytest.mark.parametrize(
    "order", [("asks", "asks", "later"), ("later", "asks", "asks"), ("once",), ("later",)]
)
def test_queued_writes_wait_together_for_one_lock_timeout(
    node: SteppedDatabase, other: Connection, order: tuple[str, ...]
) -> None:
    """Another process writes for too long."""
    other.begin_write()
    names = queue(node, order, lambda _: None)
    node.step()
    assert {node.results[name] for name in names} == {DatabaseUnavailable}
    assert WaitingCursor.waited == 1
    other.rollback()
    assert isinstance(write_now(node, "next", insert_job("next")), int)
    assert node.names() == ["next"]


@pytest.mark.parametrize("asks", [False, True], ids=["later", "at once"])
@pytest.mark.parametrize("why", FAILING)
def test_a_failed_statement_fails_only_its_own_write(
    node: SteppedDatabase, other: Connection, why: str, *, asks: bool
) -> None:
    """Even if it was sent with the BEGIN, with deferred statements of other writes, or with the
    COMMIT."""
    other.execute_script("BEGIN; LOCK TABLE devices")

    def culprit(txn: WriteTransaction) -> None:
        txn.execute_later(INSERT_JOB, ("undone", ""))
        (txn.query if asks else txn.execute_later)(FAILING[why])

    error = node.database.engine.errors if why == "nonsense" else DatabaseUnavailable
    for number, order in enumerate(ORDERS[:2] if why in ("too slow", "locked") else ORDERS):
        head = node.database.streams.current()
        names = queue(node, order, culprit)
        node.step()
        assert [node.results.pop(name) for name in names] == [
            *range(head + 1, head + 1 + len(names))
        ]
        assert issubclass(node.results.pop("culprit"), error)  # type: ignore[arg-type]
        assert node.names() == sorted(names)
        write_now(node, f"clear {number}", lambda txn: txn.execute("DELETE FROM jobs"))


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("why", FAILING)
def test_a_lone_write_fails_with_its_own_error_and_runs_once(
    node: SteppedDatabase, other: Connection, why: str, *, later: bool
) -> None:
    other.execute_script("BEGIN; LOCK TABLE devices")
    tries: list[int] = []

    def fn(txn: WriteTransaction) -> None:
        tries.append(1)
        (txn.execute_later if later else txn.query)(FAILING[why])

    outcome = write_now(node, "alone", fn)
    expected = node.database.engine.errors if why == "nonsense" else DatabaseUnavailable
    assert issubclass(outcome, expected)  # type: ignore[arg-type]
    assert len(tries) == 1
    assert isinstance(write_now(node, "next", insert_job("next")), int)
    assert node.names() == ["next"]


def ends_once(
    other: Connection, session: int, raises: type[BaseException] | None
) -> Callable[[WriteTransaction], str]:
    """Return a write during which the session ends. With `raises`, it notices and raises."""
    tries: list[int] = []

    def fn(txn: WriteTransaction) -> str:
        tries.append(1)
        txn.execute_later(INSERT_JOB, ("once", ""))
        if len(tries) == 1:
            other.query_one(f"SELECT pg_terminate_backend({session}, 5000)", ())
            if raises is not None:
                with suppress(psycopg2.Error):
                    txn.query("SELECT 1")
                raise raises
        return "done"

    return fn


@pytest.mark.parametrize("raises", [None, ValueError, UnexpectedError])
@pytest.mark.parametrize("order", [*ORDERS, ("culprit",)])
def test_a_batch_that_was_lost_before_its_commit_runs_again(
    node: SteppedDatabase,
    other: Connection,
    order: tuple[str, ...],
    raises: type[BaseException] | None,
) -> None:
    """The whole batch is undone, even if the write that noticed raises its own error."""
    session = cast(
        list[tuple[int]],
        write_now(node, "session", lambda txn: txn.query("SELECT pg_backend_pid()")),
    )
    head = node.database.streams.current()
    names = queue(node, order, ends_once(other, session[0][0], raises))
    node.step()
    assert node.results["culprit"] == "done"
    assert [node.results[name] for name in names] == [*range(head + 1, head + 1 + len(names))]
    assert node.names() == sorted([*names, "once"])


@pytest.mark.parametrize("company", [False, True], ids=["alone", "among others"])
def test_the_writer_continues_whatever_a_write_raises_after_its_transaction_is_lost(
    stepped: SteppedDatabase, *, company: bool
) -> None:
    engine = stepped.database.engine
    gone = (
        "SELECT pg_terminate_backend(pg_backend_pid(), 5000)"
        if engine.name == "postgres"
        else "ROLLBACK"
    )

    def fn(txn: WriteTransaction) -> None:
        with suppress(engine.errors):
            txn.query(gone)
        raise UnexpectedError

    names = queue(stepped, ("asks", "culprit", "later") if company else ("culprit",), fn)
    stepped.step()
    assert stepped.results["culprit"] in (UnexpectedError, DatabaseUnavailable)
    done = [name for name in names if isinstance(stepped.results[name], int)]
    assert stepped.names() == sorted(done)
    assert isinstance(write_now(stepped, "next", insert_job("next")), int)
    assert stepped.names() == sorted([*done, "next"])


def test_a_commit_that_fails_on_disk_is_not_retried(sqlite: SQLiteConfig) -> None:
    """Part of it may be on the disk. No other statement was sent with it, so the COMMIT itself
    failed."""
    stepped = SteppedDatabase(sqlite)
    tries: list[str] = []

    def fn(txn: WriteTransaction) -> None:
        tries.append("")
        connection = cast(Any, txn._connection)  # private: SQLite cannot be made to fail here
        execute = connection._execute  # private: as above

        def fail(sql: str, args: Sequence[Any] = ()) -> Any:
            if sql == "COMMIT":
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error
            return execute(sql, args)

        connection._execute = fail  # private: as above

    names = queue(stepped, ("asks", "culprit"), fn)
    stepped.step()
    assert {stepped.results[name] for name in ("culprit", *names)} == {DatabaseUnavailable}
    assert len(tries) == 1
    assert isinstance(write_now(stepped, "next", insert_job("next")), int)
    assert stepped.names() == ["next"]
    run_coroutine(stepped.database.close(), None)
