"""Failures of one write, or of the connection, when many share a transaction: the others are done
once where that is possible, the rest fails soon, and the writer goes on."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, cast

import psycopg2
import pytest
from psycopg2.errors import LockNotAvailable
from psycopg2.extensions import cursor

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
from tests.storage.test_faults_amid_writes import Odd
from tests.storage.test_postgres_writer import INSERT, INSERT_ONE, put_later, write
from tests.storage.test_writer import Stepped, put, stepped

__all__ = ["stepped"]

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
    """Counts how often a lock did not come."""

    waited = 0

    def execute(self, query: Any, vars: Any = None) -> None:
        try:
            super().execute(query, vars)
        except LockNotAvailable:
            WaitingCursor.waited += 1
            raise


def once(name: str) -> Callable[[WriteTransaction], int]:
    """It depends on what is there."""

    def fn(txn: WriteTransaction) -> int:
        assert txn.execute(INSERT_ONE, (name, ""))
        return txn.next_position()

    return fn


WRITES: Final = {"asks": put, "later": put_later, "once": once}


@pytest.fixture
def other(postgresql: PostgresConfig) -> Iterator[Connection]:
    """Another session on the same database."""
    connection = make_engine(postgresql).connect_writer()
    yield connection
    connection.close()


@pytest.fixture
def node(postgresql: PostgresConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stepped]:
    """A process that soon gives up waiting for a lock. Nothing else in it depends on how fast the
    machine is."""
    connect = PostgresEngine.open

    def open_counting(engine: PostgresEngine, settings: Any) -> Any:
        opened = connect(engine, {**settings, "idle_in_transaction_session_timeout": 0})
        opened.cursor_factory = WaitingCursor
        return opened

    monkeypatch.setattr(PostgresEngine, "open", open_counting)
    stepped = Stepped(PostgresConfig(postgresql.connect, write_lock_timeout=0.3))
    cast(Any, stepped.database)._writer._pause = lambda _seconds: None
    for kind, make in WRITES.items():
        write(stepped, kind, make(kind))  # its statements are prepared
    write(stepped, "clear", lambda txn: txn.execute("DELETE FROM jobs"))
    WaitingCursor.waited = 0
    yield stepped
    run_coroutine(stepped.database.close(), None)


def queue(
    node: Stepped, order: tuple[str, ...], culprit: Callable[[WriteTransaction], Any]
) -> list[str]:
    """Queue them as one batch; the names of all but the culprit."""
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
def test_a_lock_that_does_not_come_is_waited_for_once(
    node: Stepped, other: Connection, order: tuple[str, ...]
) -> None:
    """By all who wait by then: another process writes for too long."""
    other.begin_write()
    names = queue(node, order, lambda _: None)
    node.step()
    assert {node.results[name] for name in names} == {DatabaseUnavailable}
    assert WaitingCursor.waited == 1
    other.rollback()
    assert isinstance(write(node, "next", put("next")), int)
    assert node.names() == ["next"]


@pytest.mark.parametrize("asks", [False, True], ids=["later", "at once"])
@pytest.mark.parametrize("why", FAILING)
def test_a_statement_that_is_refused_or_given_up_fails_only_whose_it_is(
    node: Stepped, other: Connection, why: str, *, asks: bool
) -> None:
    """Also where it went with the begin, with what others had left to be sent, or with the
    commit."""
    other.execute_script("BEGIN; LOCK TABLE devices")

    def culprit(txn: WriteTransaction) -> None:
        txn.execute_later(INSERT, ("undone", ""))
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
        write(node, f"clear {number}", lambda txn: txn.execute("DELETE FROM jobs"))


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("why", FAILING)
def test_a_lone_write_fails_for_what_it_asked_and_runs_once(
    node: Stepped, other: Connection, why: str, *, later: bool
) -> None:
    other.execute_script("BEGIN; LOCK TABLE devices")
    tries: list[int] = []

    def fn(txn: WriteTransaction) -> None:
        tries.append(1)
        (txn.execute_later if later else txn.query)(FAILING[why])

    outcome = write(node, "alone", fn)
    expected = node.database.engine.errors if why == "nonsense" else DatabaseUnavailable
    assert issubclass(outcome, expected)  # type: ignore[arg-type]
    assert len(tries) == 1
    assert isinstance(write(node, "next", put("next")), int)
    assert node.names() == ["next"]


def ends_once(
    other: Connection, session: int, raises: type[BaseException] | None
) -> Callable[[WriteTransaction], str]:
    """A write during which the session ends; if it raises, having noticed."""
    tries: list[int] = []

    def fn(txn: WriteTransaction) -> str:
        tries.append(1)
        txn.execute_later(INSERT, ("once", ""))
        if len(tries) == 1:
            other.query_one(f"SELECT pg_terminate_backend({session}, 5000)", ())
            if raises is not None:
                with suppress(psycopg2.Error):
                    txn.query("SELECT 1")
                raise raises
        return "done"

    return fn


@pytest.mark.parametrize("raises", [None, ValueError, Odd])
@pytest.mark.parametrize("order", [*ORDERS, ("culprit",)])
def test_what_was_lost_before_its_commit_was_sent_is_run_again(
    node: Stepped, other: Connection, order: tuple[str, ...], raises: type[BaseException] | None
) -> None:
    """All of it is undone, also where the one that noticed makes of it what it will."""
    session = cast(
        list[tuple[int]], write(node, "session", lambda txn: txn.query("SELECT pg_backend_pid()"))
    )
    head = node.database.streams.current()
    names = queue(node, order, ends_once(other, session[0][0], raises))
    node.step()
    assert node.results["culprit"] == "done"
    assert [node.results[name] for name in names] == [*range(head + 1, head + 1 + len(names))]
    assert node.names() == sorted([*names, "once"])


@pytest.mark.parametrize("company", [False, True], ids=["alone", "among others"])
def test_the_writer_goes_on_whatever_a_write_raises_when_its_transaction_is_gone(
    stepped: Stepped, *, company: bool
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
        raise Odd

    names = queue(stepped, ("asks", "culprit", "later") if company else ("culprit",), fn)
    stepped.step()
    assert stepped.results["culprit"] in (Odd, DatabaseUnavailable)
    done = [name for name in names if isinstance(stepped.results[name], int)]
    assert stepped.names() == sorted(done)
    assert isinstance(write(stepped, "next", put("next")), int)
    assert stepped.names() == sorted([*done, "next"])


def test_a_commit_that_the_disk_refuses_is_not_run_again(sqlite: SQLiteConfig) -> None:
    """Who knows what of it is on the disk: no statement went with it that it could have been."""
    stepped = Stepped(sqlite)
    tries: list[str] = []

    def fn(txn: WriteTransaction) -> None:
        tries.append("")
        connection = cast(Any, txn._connection)
        execute = connection._execute

        def fail(sql: str, args: Sequence[Any] = ()) -> Any:
            if sql == "COMMIT":
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error
            return execute(sql, args)

        connection._execute = fail

    names = queue(stepped, ("asks", "culprit"), fn)
    stepped.step()
    assert {stepped.results[name] for name in ("culprit", *names)} == {DatabaseUnavailable}
    assert len(tries) == 1
    assert isinstance(write(stepped, "next", put("next")), int)
    assert stepped.names() == ["next"]
    run_coroutine(stepped.database.close(), None)
