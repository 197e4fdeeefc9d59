"""Notes of what clients sent, and how they go."""

from collections.abc import Sequence
from typing import Any

import pytest

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.rooms import sent_transactions
from storage.rooms.sent_transactions import SentTransaction, SentTransactionStore, add_transaction

NOTES = 40


def note(number: int) -> SentTransaction:
    return SentTransaction("@a:example.org", "D", "send", f"t{number}")


async def kept(store: SentTransactionStore) -> list[int]:
    return [number for number in range(NOTES) if await store.get_response(note(number)) is not None]


async def test_old_notes_go_step_by_step_and_again_when_others_are_old(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sent_transactions, "LOOKED_AT", 3)
    store = SentTransactionStore(database)

    async def go_through(created_ts: int, limit: int) -> int:
        """In so many steps."""
        steps = 1
        while await store.remove_before(created_ts, limit):
            steps += 1
        return steps

    def add(txn: WriteTransaction) -> None:
        for number in range(NOTES):
            add_transaction(txn, note(number), None, b"{}", number)

    await database.write("add", add)
    assert await go_through(0, 5) in (3, 4), "it looks at few in a step"
    assert await kept(store) == [*range(NOTES)]
    assert await go_through(10, 5) >= 3, "it forgets few in a step"
    assert await kept(store) == [*range(10, NOTES)]
    await go_through(NOTES - 1, 7)
    assert await kept(store) == [NOTES - 1]
    assert await SentTransactionStore(database).remove_before(NOTES, 15) == 0
    assert await kept(store) == []
    assert await store.remove_before(NOTES, 15) == 0


async def test_a_note_that_was_made_anew_meanwhile_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node has removed the old one, and the client sent the request again."""
    store = SentTransactionStore(database)
    remove = sent_transactions._remove

    def remove_late(txn: WriteTransaction, notes: Sequence[Any]) -> None:
        remove(txn, notes)
        add_transaction(txn, note(1), None, b"{}", 20)
        remove(txn, notes)

    await database.write("add", lambda txn: add_transaction(txn, note(1), None, b"{}", 1))
    monkeypatch.setattr(sent_transactions, "_remove", remove_late)
    assert await store.remove_before(10, 5) == 0
    assert await kept(store) == [1]
