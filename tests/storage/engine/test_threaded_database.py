"""The database as the server uses it: with threads, several nodes, and sudden ends."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from threading import current_thread, main_thread
from typing import cast

import pytest
from psycopg2.extensions import make_dsn
from twisted.internet import reactor as installed_reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, gatherResults

from storage.engine.database import (
    Database,
    DatabaseUnavailable,
    PostgresConfig,
    SQLiteConfig,
    Transaction,
    WriteTransaction,
    open_database,
)
from storage.engine.streams import Change, Stage, Topic
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.programs import piped_program

asked_by: ContextVar[str] = ContextVar("asked_by", default="nobody")
reactor = cast(ReactorBase, installed_reactor)


@asynccontextmanager
async def opened(
    config: SQLiteConfig | PostgresConfig, observer: QueryCounter | None = None
) -> AsyncIterator[Database]:
    database = open_database(config, reactor, observer)
    try:
        yield database
    finally:
        await database.close()


def put(txn: WriteTransaction, name: str) -> int:
    position = txn.next_position()
    txn.execute("INSERT INTO jobs (name, progress) VALUES (?, ?)", (name, str(position)))
    txn.announce(Change(position, Topic.PROFILE, user_id=name))
    return position


def positions(txn: Transaction) -> list[int]:
    return sorted(int(position) for (position,) in txn.query("SELECT progress FROM jobs"))


def in_thread(_: Transaction) -> tuple[str, bool]:
    return asked_by.get(), current_thread() is main_thread()


@pytest.mark.reactor
async def test_reads_and_writes_run_elsewhere_in_the_context_of_their_caller(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    async with opened(database_config) as database:
        asked_by.set("alice")
        assert await database.read("in_thread", in_thread) == ("alice", False)
        assert await database.write("in_thread", in_thread) == ("alice", False)
        quickly = await database.read_quickly("in_thread", in_thread)
        assert quickly == ("alice", database.engine.name == "sqlite")


@pytest.mark.reactor
async def test_errors_come_back_from_threads(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    def fail(_: Transaction) -> None:
        raise LookupError("not there")

    async with opened(database_config) as database:
        for verb in (database.read, database.write, database.read_quickly):
            with pytest.raises(LookupError, match="not there"):
                await verb("fail", fail)


@pytest.mark.reactor
async def test_concurrent_writes_share_commits(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    observer = QueryCounter()
    async with opened(database_config, observer) as database:
        writes = [
            Deferred.fromCoroutine(database.write("put", put, str(number))) for number in range(200)
        ]
        assert sorted(await gatherResults(writes)) == list(range(1, 201))
        assert await database.read("positions", positions) == list(range(1, 201))
    assert sum(observer.batches) == 200
    assert len(observer.batches) < 50


@pytest.mark.reactor
async def test_closing_finishes_waiting_jobs(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    database = open_database(database_config, reactor)
    writes = [
        Deferred.fromCoroutine(database.write("put", put, str(number))) for number in range(100)
    ]
    reads = [Deferred.fromCoroutine(database.read("positions", positions)) for _ in range(10)]
    await database.close()
    assert all(deferred.called for deferred in writes + reads)
    assert sorted(await gatherResults(writes)) == list(range(1, 101))
    with pytest.raises(DatabaseUnavailable):
        await database.write("put", put, "late")
    restarted = open_inline(database_config)
    assert await restarted.read("positions", positions) == list(range(1, 101))
    await restarted.close()


@pytest.mark.reactor
async def test_a_read_after_a_position_sees_all_commits_up_to_it(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    """Two nodes write, both read at what their streams call the present: there is never a hole
    below it."""
    async with opened(database_config) as one, opened(database_config) as other:
        seen: list[int] = []
        positions_seen: dict[Database, set[int]] = {one: set(), other: set()}

        def listen(database: Database) -> None:
            database.streams.subscribe(
                lambda received: positions_seen[database].update(
                    change.position for change in received
                ),
                stage=Stage.NOTIFY,
            )
            database.streams.watch(
                lambda after, upto: positions_seen[database].update(range(after + 1, upto + 1)),
                stage=Stage.NOTIFY,
            )

        async def write(database: Database, caller: str) -> None:
            for number in range(30):
                mine = await database.write("put", put, f"{caller}-{number}")
                assert mine <= database.streams.current()

        async def read(database: Database) -> None:
            while len(seen) < 200:
                current = database.streams.current()
                assert positions_seen[database] == set(range(1, current + 1))
                found = await database.read("positions", positions)
                assert found[:current] == list(range(1, current + 1))
                # Whatever moment a reader hits, on whatever node, positions have no holes.
                assert found == list(range(1, len(found) + 1))
                seen.append(current)

        for database in (one, other):
            listen(database)
        work = [
            write(database, f"{n}{caller}")
            for n, database in enumerate((one, other))
            for caller in range(5)
        ]
        await gatherResults(
            [Deferred.fromCoroutine(each) for each in [*work, read(one), read(other)]]
        )
        for database in (one, other):
            assert await database.catch_up() == 300
            assert positions_seen[database] == set(range(1, 301))


@pytest.mark.reactor
async def test_the_database_is_reconnected_after_it_ended_all_connections(
    postgresql: PostgresConfig,
) -> None:
    async with opened(postgresql) as database:
        await database.write("put", put, "before")
        await database.read("positions", positions)

        def end_all(txn: Transaction) -> None:
            txn.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

        killer = open_inline(postgresql)
        await killer.read("end_all", end_all)
        await killer.close()
        assert await database.write("put", put, "after") == 2
        for _ in range(10):
            assert await database.read("positions", positions) == [1, 2]
            assert await database.read_quickly("positions", positions) == [1, 2]


def sqlite_arguments(config: SQLiteConfig) -> tuple[str, str]:
    return "sqlite", config.path


def postgres_arguments(config: PostgresConfig) -> tuple[str, str]:
    return "postgres", make_dsn(None, **config.connect)


def write_and_kill(arguments: tuple[str, str], until: int) -> list[str]:
    """Kill a process after `until` acknowledged writes, and return all writes it acknowledged."""
    with piped_program("tests.helpers.writing_process", *arguments) as (process, output):
        acknowledged = [output.readline().strip() for _ in range(until)]
        process.kill()
        return acknowledged + output.read().splitlines()


@pytest.mark.reactor(120)
async def test_acknowledged_writes_survive_a_kill(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    arguments = (
        sqlite_arguments(database_config)
        if isinstance(database_config, SQLiteConfig)
        else postgres_arguments(database_config)
    )
    acknowledged: list[str] = []
    for until in (1, 60, 333):
        acknowledged += write_and_kill(arguments, until)

    def names(txn: Transaction) -> dict[str, int]:
        return {
            name: int(position) for name, position in txn.query("SELECT name, progress FROM jobs")
        }

    async with opened(database_config) as database:
        found = await database.read("names", names)
        assert set(acknowledged) <= set(found)
        assert "" not in acknowledged
        # No position was given out twice, and none is above what the counter says.
        assert len(set(found.values())) == len(found)
        assert max(found.values()) <= database.streams.current()
        assert await database.write("put", put, "next") == database.streams.current()


@pytest.mark.reactor
async def test_a_callback_of_a_write_runs_on_the_reactors_thread(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    threads: list[bool] = []

    def note() -> None:
        threads.append(current_thread() is main_thread())

    def write(txn: WriteTransaction, callback: Callable[[], None]) -> None:
        txn.after_commit(callback)

    async with opened(database_config) as database:
        database.streams.subscribe(lambda _: note(), stage=Stage.NOTIFY)
        await database.write("put", put, "a")
        await database.write("write", write, note)
    assert threads == [True, True]
