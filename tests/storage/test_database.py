"""Reads and writes: what callers rely on, on both databases, run inline."""

import pytest

from storage.database import Database, DatabaseUnavailable, Transaction, WriteTransaction
from storage.streams import Change, Topic


def put(txn: WriteTransaction, name: str, progress: str) -> int:
    txn.execute("INSERT INTO jobs (name, progress) VALUES (?, ?)", (name, progress))
    position = txn.next_position()
    txn.announce(Change(position, Topic.PROFILE, user_id=name))
    return position


def names(txn: Transaction) -> list[str]:
    return [name for (name,) in txn.query("SELECT name FROM jobs ORDER BY name")]


async def test_what_was_written_can_be_read(database: Database) -> None:
    assert await database.write("put", put, "a", progress="1") == 1
    assert await database.read("names", names) == ["a"]
    assert await database.read_quickly("names", names) == ["a"]
    assert database.streams.current() == 1


async def test_a_write_that_raises_leaves_nothing_and_announces_nothing(database: Database) -> None:
    heard: list[Change] = []
    called: list[str] = []
    database.streams.subscribe(heard.extend)

    def fail(txn: WriteTransaction) -> None:
        put(txn, "a", "1")
        txn.after_commit(lambda: called.append("a"))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.write("fail", fail)
    assert await database.read("names", names) == []
    assert (heard, called) == ([], [])
    await database.write("put", put, "b", "1")
    assert [change.user_id for change in heard] == ["b"]


async def test_a_closed_database_says_so(database: Database) -> None:
    await database.close()
    with pytest.raises(DatabaseUnavailable):
        await database.read("names", names)
    with pytest.raises(DatabaseUnavailable):
        await database.write("put", put, "a", "1")
