"""Stored transaction ids of clients, and their clean-up."""

from collections.abc import Sequence
from typing import Any

import pytest

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.rooms import sent_transactions
from storage.rooms.sent_transactions import SentTransaction, SentTransactionStore, add_transaction

RECORDS = 40


def record(number: int) -> SentTransaction:
    return SentTransaction("@a:example.org", "D", "send", f"t{number}")


async def stored(store: SentTransactionStore) -> list[int]:
    return [
        number for number in range(RECORDS) if await store.get_response(record(number)) is not None
    ]


async def test_old_records_are_deleted_in_steps_and_the_next_walk_starts_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sent_transactions, "READ_PER_DELETED", 3)
    store = SentTransactionStore(database)

    async def go_through(created_ts: int, limit: int) -> int:
        """Run the clean-up to the end of the table. Return the number of steps."""
        steps = 1
        while await store.remove_before(created_ts, limit):
            steps += 1
        return steps

    def add(txn: WriteTransaction) -> None:
        for number in range(RECORDS):
            add_transaction(txn, record(number), None, b"{}", number)

    await database.write("add", add)
    assert await go_through(0, 5) in (3, 4), "a step reads few rows"
    assert await stored(store) == [*range(RECORDS)]
    assert await go_through(10, 5) >= 3, "a step deletes few rows"
    assert await stored(store) == [*range(10, RECORDS)]
    await go_through(RECORDS - 1, 7)
    assert await stored(store) == [RECORDS - 1]
    assert await SentTransactionStore(database).remove_before(RECORDS, 15) == 0
    assert await stored(store) == []
    assert await store.remove_before(RECORDS, 15) == 0


async def test_a_record_that_was_written_again_meanwhile_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node has removed the old record, and the client sent the request again."""
    store = SentTransactionStore(database)
    remove = sent_transactions._remove  # private: the other write falls into the transaction

    def remove_late(txn: WriteTransaction, records: Sequence[Any]) -> None:
        remove(txn, records)
        add_transaction(txn, record(1), None, b"{}", 20)
        remove(txn, records)

    await database.write("add", lambda txn: add_transaction(txn, record(1), None, b"{}", 1))
    monkeypatch.setattr(sent_transactions, "_remove", remove_late)  # private: as above
    assert await store.remove_before(10, 5) == 0
    assert await stored(store) == [1]
