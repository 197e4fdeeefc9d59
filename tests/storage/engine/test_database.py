"""Reads and writes on both databases, run inline."""

import pytest
from twisted.internet.defer import CancelledError, Deferred

from storage.engine.database import (
    Database,
    DatabaseUnavailable,
    PostgresConfig,
    SQLiteConfig,
    Transaction,
    WriteTransaction,
)
from storage.engine.streams import Change, Stage, Topic
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.executors import ManualExecutor
from tests.helpers.stepped_database import select_job_names


def put(txn: WriteTransaction, name: str, progress: str) -> int:
    txn.execute("INSERT INTO jobs (name, progress) VALUES (?, ?)", (name, progress))
    position = txn.next_position()
    txn.announce(Change(position, Topic.PROFILE, user_id=name))
    return position


async def test_a_committed_write_can_be_read(database: Database) -> None:
    assert await database.write("put", put, "a", progress="1") == 1
    assert await database.read("names", select_job_names) == ["a"]
    assert await database.read_quickly("names", select_job_names) == ["a"]
    assert database.streams.current() == 1


async def test_a_write_that_raises_is_undone_and_announces_nothing(database: Database) -> None:
    received: list[Change] = []
    called: list[str] = []
    database.streams.subscribe(received.extend, stage=Stage.NOTIFY)

    def fail(txn: WriteTransaction) -> None:
        put(txn, "a", "1")
        txn.after_commit(lambda: called.append("a"))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.write("fail", fail)
    assert await database.read("names", select_job_names) == []
    assert (received, called) == ([], [])
    await database.write("put", put, "b", "1")
    assert [change.user_id for change in received] == ["b"]


async def test_a_read_sees_one_moment(
    database: Database, database_config: SQLiteConfig | PostgresConfig
) -> None:
    other = open_inline(database_config)

    def look_twice(txn: Transaction) -> tuple[list[str], list[str]]:
        first = select_job_names(txn)
        Deferred.fromCoroutine(other.write("put", put, "meanwhile", "1"))
        return first, select_job_names(txn)

    assert await database.read("look_twice", look_twice) == ([], [])
    assert await database.read("names", select_job_names) == ["meanwhile"]
    await other.close()


async def test_a_cancelled_caller_does_not_undo_its_write(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    writer = ManualExecutor()
    database = open_inline(database_config, writer=writer)
    cancelled = Deferred.fromCoroutine(database.write("put", put, "a", "1"))
    other = Deferred.fromCoroutine(database.write("put", put, "b", "1"))
    cancelled.cancel()
    writer.run()
    with pytest.raises(CancelledError):
        await cancelled
    assert await other == 2
    assert await database.read("names", select_job_names) == ["a", "b"]
    await database.close()


async def test_the_observer_counts_queries_and_batches(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    counter = QueryCounter()
    database = open_inline(database_config, counter)
    await database.write("put", put, "a", "1")
    await database.read("names", select_job_names)
    await database.read_quickly("names", select_job_names)
    await database.close()
    assert counter.queries == {"put": 1, "names": 2}
    assert (counter.reads, counter.writes, counter.batches) == ({"names": 2}, {"put": 1}, [1])


async def test_a_closed_database_raises_database_unavailable(database: Database) -> None:
    await database.close()
    with pytest.raises(DatabaseUnavailable):
        await database.read("names", select_job_names)
    with pytest.raises(DatabaseUnavailable):
        await database.write("put", put, "a", "1")
