"""Receipts move forwards, and their number per user and room is limited."""

from random import Random

import pytest

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.rooms import receipts
from storage.rooms.receipts import UNTHREADED, NewReceipt, ReceiptStore, threads_read_upto

ALICE, ROOM = "@alice:example.org", "!room:example.org"


async def test_a_receipt_with_a_position_is_not_replaced_by_one_without(database: Database) -> None:
    store = ReceiptStore(database)

    async def read(event_id: str, position: int | None) -> bool:
        """Whether the receipt moves."""
        before = database.streams.current()
        await store.set_receipts(
            [NewReceipt(1, ROOM, ALICE, "m.read", UNTHREADED, event_id, position, 0)]
        )
        return bool((await store.get_receipts({1: (before, database.streams.current())}))[1])

    received = [
        ("$past", None),
        ("$of_the_past", None),
        ("$5", 5),
        ("$unknown", None),
        ("$4", 4),
        ("$5", 5),
        ("$6", 6),
    ]
    assert [await read(*each) for each in received] == [True, True, True, False, False, False, True]
    (row,) = (await store.get_receipts_of_user(ALICE, [1]))[1]
    assert (row.event_id, row.event_position) == ("$6", 6)


async def test_receipts_of_backfilled_events_move_forwards_too(database: Database) -> None:
    store = ReceiptStore(database)

    def write(txn: WriteTransaction) -> None:
        txn.execute_many(
            "INSERT INTO events (event_nid, event_id, room_nid, depth, type, sender,"
            " origin_server_ts, flags, pdu)"
            " VALUES (?, ?, ?, ?, 'm', '', 0, 16, ?)",
            [
                (1, "$5", 1, 5, b""),
                (2, "$3", 1, 3, b""),
                (3, "$5b", 1, 5, b""),
                (4, "$elsewhere", 2, 9, b""),
            ],
        )

    await database.write("write", write)

    async def read(event_id: str, ts: int) -> str:
        """Return the event of the receipt afterwards."""
        await store.set_receipts(
            [NewReceipt(1, ROOM, ALICE, "m.read", UNTHREADED, event_id, None, ts)]
        )
        (row,) = (await store.get_receipts_of_user(ALICE, [1]))[1]
        return row.event_id

    assert [
        await read(*each) for each in (("$3", 9), ("$5", 8), ("$3", 10), ("$5b", 1), ("$5", 20))
    ] == [*("$3", "$5", "$5", "$5b", "$5b")]
    # incomparable events: by the receipts' timestamps, in any order of arrival
    assert [
        await read(*each)
        for each in (("$unknown", 0), ("$unknown", 2), ("$elsewhere", 1), ("$elsewhere", 3))
    ] == [*("$5b", "$unknown", "$unknown", "$elsewhere")]


async def test_the_number_of_thread_receipts_is_limited(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "MAX_THREADS", 3)
    store = ReceiptStore(database)

    async def read(thread_id: str, position: int | None, user_id: str = ALICE) -> None:
        await store.set_receipts(
            [NewReceipt(1, ROOM, user_id, "m.read", thread_id, "$of" + thread_id, position, 0)]
        )

    for thread_id, position in (
        ("$a", 7),
        ("$b", None),
        (UNTHREADED, 1),
        ("$c", 5),
        ("main", 2),
        ("$d", 6),
        ("$e", 3),
    ):
        await read(thread_id, position)
    await read("$a", 1, "@bob:example.org")
    rows = (await store.get_receipts_of_user(ALICE, [1]))[1]
    assert {row.thread_id for row in rows} == {UNTHREADED, "main", "$a", "$d", "$e"}
    assert len((await store.get_receipts_of_user("@bob:example.org", [1]))[1]) == 1


@pytest.mark.parametrize("seed", range(5))
async def test_threads_stay_read_after_their_receipts_are_deleted(
    database: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """For any order of reading; and the position never moves back."""
    monkeypatch.setattr(receipts, "MAX_THREADS", 4)
    store, random = ReceiptStore(database), Random(seed)
    said: dict[str, int] = {}
    before = 0
    for _ in range(60):
        thread_id, at = f"${random.randrange(12)}", random.choice([None, *range(1, 40)])
        kind = random.choice(["m.read", "m.read", "m.read.private"])
        await store.set_receipts([NewReceipt(1, ROOM, ALICE, kind, thread_id, f"$at{at}", at, 0)])
        rows = (await store.get_receipts_of_user(ALICE, [1]))[1]
        assert len(rows) <= 8
        said[thread_id] = max(said.get(thread_id, 0), at or 0)
        upto = threads_read_upto(rows)
        assert before <= upto
        before = upto
        for thread, read in said.items():
            kept = [row.event_position or 0 for row in rows if row.thread_id == thread]
            assert read <= max(upto, *kept, 0)
    assert before > 0


@pytest.mark.parametrize("rooms", [[1], [1, 2, 3]])
async def test_changed_and_own_receipts_are_read_in_one_query(
    database: Database, rooms: list[int]
) -> None:
    store = ReceiptStore(database)
    for number, (room, user_id) in enumerate(
        [(1, ALICE), (1, "@bob:example.org"), (2, ALICE), (2, "@carol:example.org")]
    ):
        new = NewReceipt(room, f"!{room}", user_id, "m.read", UNTHREADED, f"${number}", number, 0)
        await store.set_receipts([new])
    head = database.streams.current()
    ranges = dict.fromkeys(rooms, (head - 1, head))
    changed, own = await store.get_receipts_and_own(ranges, ALICE, rooms[:2])
    assert changed == await store.get_receipts(ranges)
    assert own == await store.get_receipts_of_user(ALICE, rooms[:2])
    everything = {1: (0, head)}
    assert await store.get_receipts_and_own(everything, ALICE, []) == (
        await store.get_receipts(everything),
        {},
    )
    assert len((await store.get_receipts(everything))[1]) == 2
