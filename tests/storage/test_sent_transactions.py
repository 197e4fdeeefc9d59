"""Notes of what clients sent, and how they go."""

from collections.abc import Sequence
from typing import Any

import pytest

from storage import sent_transactions
from storage.database import Database
from storage.sent_transactions import SentTransaction, SentTransactionStore, add_transaction
from storage.transaction import WriteTransaction

NOTES = 40


def note(number: int) -> SentTransaction:
    return SentTransaction("@a:example.org", "D", "send", f"t{number}")


async def kept(store: SentTransactionStore) -> list[int]:
    return [number for number in range(NOTES) if await store.get_response(note(number)) is not None]


async def test_old_notes_go_step_by_step_and_again_when_others_are_old(database: Database) -> None:
    store = SentTransactionStore(database)

    def add(txn: WriteTransaction) -> None:
        for number in range(NOTES):
            add_transaction(txn, note(number), None, b"{}", number)

    await database.write("add", add)
    assert [await store.remove_before(10, 12) for _ in range(4)] == [12, 12, 12, 4]
    assert await kept(store) == [*range(10, NOTES)]
    assert [await store.remove_before(NOTES - 1, 15) for _ in range(3)] == [15, 15, 0], "from the first one on"
    assert await kept(store) == [NOTES - 1]
    assert await SentTransactionStore(database).remove_before(NOTES, 15) == 1
    assert await kept(store) == []


async def test_a_note_that_was_made_anew_meanwhile_stays(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another node has removed the old one, and the client sent the request again."""
    store = SentTransactionStore(database)
    remove = sent_transactions._remove

    def remove_late(txn: WriteTransaction, notes: Sequence[Any]) -> None:
        remove(txn, notes)
        add_transaction(txn, note(1), None, b"{}", 20)
        remove(txn, notes)

    await database.write("add", lambda txn: add_transaction(txn, note(1), None, b"{}", 1))
    monkeypatch.setattr(sent_transactions, "_remove", remove_late)
    assert await store.remove_before(10, 5) == 1
    assert await kept(store) == [1]
