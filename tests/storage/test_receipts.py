"""Receipts move forwards, and a user has so many of them in a room."""

import pytest

from storage import receipts
from storage.database import Database
from storage.receipts import UNTHREADED, NewReceipt, ReceiptStore

ALICE, ROOM = "@alice:example.org", "!room:example.org"


async def test_what_is_known_is_not_replaced_by_what_is_not(database: Database) -> None:
    store = ReceiptStore(database)

    async def read(event_id: str, position: int | None) -> bool:
        """Whether it is told to anybody."""
        before = database.streams.current()
        await store.set_receipts([NewReceipt(1, ROOM, ALICE, "m.read", UNTHREADED, event_id, position, 0)])
        return bool((await store.get_receipts({1: (before, database.streams.current())}))[1])

    told = [("$past", None), ("$of_the_past", None), ("$5", 5), ("$unknown", None), ("$4", 4), ("$5", 5), ("$6", 6)]
    assert [await read(*each) for each in told] == [True, True, True, False, False, False, True]
    (row,) = (await store.get_receipts_of_user(ALICE, [1]))[1]
    assert (row.event_id, row.event_position) == ("$6", 6)


async def test_receipts_of_threads_have_an_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "MOST_THREADS", 3)
    store = ReceiptStore(database)

    async def read(thread_id: str, position: int | None, user_id: str = ALICE) -> None:
        await store.set_receipts([NewReceipt(1, ROOM, user_id, "m.read", thread_id, "$of" + thread_id, position, 0)])

    for thread_id, position in (("$a", 7), ("$b", None), (UNTHREADED, 1), ("$c", 5), ("main", 2), ("$d", 6), ("$e", 3)):
        await read(thread_id, position)
    await read("$a", 1, "@bob:example.org")
    rows = (await store.get_receipts_of_user(ALICE, [1]))[1]
    assert {row.thread_id for row in rows} == {UNTHREADED, "main", "$a", "$d", "$e"}
    assert len((await store.get_receipts_of_user("@bob:example.org", [1]))[1]) == 1
