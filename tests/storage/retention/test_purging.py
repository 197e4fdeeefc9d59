"""Effects of a purge, on both databases."""

from collections.abc import Collection
from typing import cast

import pytest

from storage.engine.database import Database, WriteTransaction
from storage.engine.interface import Row
from storage.engine.sqlite import SQLiteEngine
from storage.engine.streams import Change, Stage, Topic
from storage.events.events import EventFlag, EventStore
from storage.events.relations import Relation, RelationRow, add_relations
from storage.events.timelines import START, Direction, TimelinePlace, TimelineStore
from storage.media.references import do_rechecks
from storage.retention.history_purges import (
    HistoryPurge,
    HistoryPurgeStore,
    PurgeExtent,
    PurgeRunning,
    record_progress,
)
from storage.retention.purging import (
    BEFORE_FIRST,
    PurgeableMessage,
    PurgeCause,
    PurgedMessages,
    PurgingStore,
)
from storage.retention.room_retention import RoomRetention, RoomRetentionStore, set_room_retention
from tests.helpers.history_rows import (
    ALICE,
    BOB,
    DAY,
    NOW,
    OWN,
    SHOWN,
    add_event,
    add_room,
    insert_history,
    pruned_pdus,
    select_rows,
)


async def test_a_purge_removes_content_and_derived_data(database: Database) -> None:
    received: list[Change] = []
    database.streams.subscribe(received.extend, Topic.PURGED, stage=Stage.NOTIFY)
    store = PurgingStore(database)
    await database.write("fill", insert_history)
    assert await store.find_rooms({1: 4, 2: 4}) == [1]
    older = await store.get_older(1, 6, BEFORE_FIRST, 10)
    assert [(each.event_nid, each.sender, each.depth) for each in older] == [
        (1, ALICE, 1),
        (3, ALICE, 3),
        (5, ALICE, 5),
    ]
    assert [each.event_nid for each in await store.get_older(1, 6, (3, 3), 10)] == [5]

    # state, events of another room, and missing ones are left alone
    asked = pruned_pdus(1, 2, 3, 11, 99)
    assert await database.write("purge", store.purge, 1, asked, PurgeCause.RETENTION, NOW) == 2
    assert await database.write("purge", store.purge, 1, asked, PurgeCause.RETENTION, NOW) == 0

    events = await EventStore(database).get_events(range(1, 12))
    assert {nid for nid, row in events.items() if row.pdu == b'{"content":{}}'} == {1, 3}
    assert [
        (events[nid].flags, events[nid].redacted_by, events[nid].thread_root) for nid in (1, 3)
    ] == [
        (SHOWN | EventFlag.PURGED, 1, "$1"),
        (SHOWN | EventFlag.PURGED, 3, "$1"),
    ]
    outcomes = "SELECT user_id, position FROM event_push_actions ORDER BY user_id"
    assert await database.read("read", select_rows, outcomes) == [(ALICE, 5), (BOB, 5)]
    assert await database.read("read", select_rows, "SELECT event_nid FROM relations") == []
    assert [each.event_nid for each in await store.get_older(1, 6, BEFORE_FIRST, 10)] == [5]
    assert await store.find_rooms({1: 4, 2: 4}) == []
    (change,) = received
    assert change.detail == PurgedMessages(1, [1, 3], counted_upto=3)


async def test_the_thread_of_a_purged_event_stays_known(database: Database) -> None:
    def fill_thread(txn: WriteTransaction) -> None:
        add_room(txn)
        add_room(txn, 2)
        for nid in range(1, 9):
            add_event(txn, nid, room=2 if nid == 7 else 1)
        txn.execute("UPDATE events SET thread_root = NULL")
        txn.execute("UPDATE events SET thread_root = '$noted' WHERE event_nid = 6")
        txn.execute("INSERT INTO redactions (redacts, event_nid) VALUES ('$3', 5)")
        # 2 in the thread, 3 an edit of it, 4 a reaction to that, 5 redacts 3; 8 relates to an event
        # of another room
        said = [
            ("m.thread", "$1", 2),
            ("m.replace", "$2", 3),
            ("m.annotation", "$3", 4),
            ("m.replace", "$7", 8),
        ]
        said += [("m.thread", "$1", 7)]
        add_relations(
            txn,
            [
                RelationRow(
                    Relation(rel_type, target),
                    nid,
                    f"${nid}",
                    2 if nid == 7 else 1,
                    nid,
                    "a",
                    ALICE,
                    nid,
                )
                for rel_type, target, nid in said
            ],
        )

    await database.write("fill", fill_thread)
    for nids in ((1, 2, 3), (4, 5, 6, 8)):
        await database.write(
            "purge", PurgingStore(database).purge, 1, pruned_pdus(*nids), PurgeCause.PURGE, NOW
        )
    events = await EventStore(database).get_events(range(1, 9))
    assert {
        nid: row.thread_root for nid, row in events.items() if row.flags & EventFlag.PURGED
    } == {
        1: None,
        2: "$1",
        3: "$1",
        4: "$1",
        5: "$1",
        6: "$noted",
        8: None,
    }


async def test_pages_and_timestamps_skip_purged_events(database: Database) -> None:
    store, timelines = PurgingStore(database), TimelineStore(database)
    await database.write("fill", insert_history)
    await database.write("purge", store.purge, 1, pruned_pdus(1, 5, 7), PurgeCause.PURGE, NOW)
    left = [2, 3, 4, 6, 8, 9, 10]
    page = await timelines.get_page(1, START, None, Direction.FORWARDS, 20)
    assert page == [(TimelinePlace(nid, nid), nid) for nid in left]
    back = await timelines.get_page(1, TimelinePlace(7, 7), None, Direction.BACKWARDS, 3)
    assert [nid for _, nid in back] == [6, 4, 3]
    assert await timelines.get_by_time(1, 5, Direction.FORWARDS, None, 3) == [
        (6, 6),
        (8, 8),
        (9, 9),
    ]
    assert await timelines.get_by_time(1, 8, Direction.BACKWARDS, (8, 8), 3) == [
        (6, 6),
        (4, 4),
        (3, 3),
    ]


async def test_files_lose_their_references_with_the_cause(database: Database) -> None:
    store = PurgingStore(database)
    await database.write("fill", insert_history)
    sql = (
        "INSERT INTO media (media_id, user_id, hash, type, size, created_ts,"
        " last_access_ts, authenticated)"
        " VALUES (?, ?, ?, '', 1, 1, 1, 1)"
    )
    files = [(f"x{nid}", ALICE, bytes(32)) for nid in (1, 3)]
    await database.write("files", lambda txn: txn.execute_many(sql, files))
    for nid, cause in ((1, PurgeCause.RETENTION), (3, PurgeCause.PURGE)):
        await database.write("purge", store.purge, 1, pruned_pdus(nid), cause, NOW)
    await database.write("recheck", do_rechecks, OWN, 11, NOW, 100)
    known = (
        "SELECT media_id, cause FROM tracked_media WHERE unreferenced_ts IS NOT NULL"
        " ORDER BY media_id"
    )
    assert await database.read("read", select_rows, known) == [("x1", "retention"), ("x3", "purge")]
    days = [
        (each.day, each.room_id, each.cause, each.messages)
        for each in await store.get_days(None, 10)
    ]
    assert days == [(1000, "!1:example.org", "retention", 1), (1000, "!1:example.org", "purge", 1)]
    (first,) = await store.get_days(None, 1)
    (second,) = await store.get_days((first.day, first.room_nid, first.cause), 1)
    assert [first.cause, second.cause] == ["retention", "purge"]
    assert await store.remove_days(1001 * DAY, 10) == 2


async def test_other_nodes_are_notified_of_the_rooms(database: Database) -> None:
    store, events = PurgingStore(database), EventStore(database)
    await database.write("fill", insert_history)
    before = database.streams.current()
    await database.write("purge", store.purge, 1, pruned_pdus(1), PurgeCause.PURGE, NOW)
    assert (await events.get_content_changes(0, before)).changed_rooms == {1}
    assert (
        await events.get_content_changes(0, database.streams.current())
    ).changed_rooms == frozenset()


async def test_retention_periods_are_announced_in_order(database: Database) -> None:
    store = RoomRetentionStore(database)
    await database.write("fill", insert_history)
    await database.write("set", set_room_retention, 1, 5)
    rows, upto = await store.get_since(0)
    assert rows == [RoomRetention(1, 5, upto)]
    await database.write("set", set_room_retention, 2, 7)
    await database.write("set", set_room_retention, 1, None)
    rows, upto = await store.get_since(upto)
    assert rows == [RoomRetention(2, 7, upto - 1), RoomRetention(1, None, upto)]
    assert await store.get_since(upto) == ([], upto)
    assert await store.get_rooms(0, 1) == [1]
    assert await store.get_rooms(1, 5) == [2]


def _purge(purge_id: str, room_nid: int) -> HistoryPurge:
    return HistoryPurge(
        purge_id, room_nid, PurgeCause.PURGE.value, 9, 8, True, 7, BEFORE_FIRST, 0, ALICE, NOW, 11
    )


async def test_a_room_has_one_purge_at_a_time(database: Database) -> None:
    store = HistoryPurgeStore(database)
    first = _purge("first", 1)
    await store.add(first)
    assert await store.get("first") == first
    with pytest.raises(PurgeRunning):
        await store.add(_purge("second", 1))
    await store.add(_purge("third", 2))
    assert await store.get_active() == first
    await database.write("move", record_progress, first, (5, 6), 2)
    await database.write("move", record_progress, first, (5, 4), 1)  # from a node that is behind
    moved = await store.get("first")
    assert moved is not None
    assert (moved.after, moved.messages, moved.finished_ts) == ((5, 6), 3, None)
    await store.set_finished("first", NOW + 1, "why")
    await store.add(_purge("second", 1))
    ended = await store.get("first")
    assert ended is not None
    assert (ended.finished_ts, ended.error) == (NOW + 1, "why")
    assert await store.remove_finished(NOW + 2, 10) == 1
    assert await store.get("first") is None


async def test_the_newest_message_is_no_edit_no_reaction_and_has_its_content(
    database: Database,
) -> None:
    store, types = HistoryPurgeStore(database), ["m.room.message"]
    await database.write("fill", insert_history)
    assert await store.get_extent(1, types) == PurgeExtent(11, 9)
    assert await store.get_extent(1, ["m.sticker"]) == PurgeExtent(11, None)
    children = [
        RelationRow(Relation(rel_type, "$5"), nid, f"${nid}", 1, nid, "m.room.message", ALICE, nid)
        for rel_type, nid in (("m.replace", 9), ("m.annotation", 7))
    ]
    await database.write("relate", add_relations, children)
    assert await store.get_extent(1, types) == PurgeExtent(11, 5)
    redact = "UPDATE events SET redacted_by = 9 WHERE event_nid = 5"
    await database.write("redact", lambda txn: txn.execute(redact))
    await database.write(
        "purge", PurgingStore(database).purge, 1, pruned_pdus(3), PurgeCause.PURGE, NOW
    )
    assert await store.get_extent(1, types) == PurgeExtent(11, 1)


async def test_events_that_belong_to_the_kept_message_stay(database: Database) -> None:
    store = HistoryPurgeStore(database)

    def fill_thread(txn: WriteTransaction) -> None:
        add_room(txn)
        for nid in range(1, 10):
            add_event(txn, nid)
        said = [
            ("m.thread", "$1", 3),
            ("m.thread", "$1", 2),
            ("m.replace", "$1", 4),
            ("m.annotation", "$1", 5),
            ("m.replace", "$3", 6),
            ("m.annotation", "$3", 7),
            ("m.reference", "$3", 8),
        ]
        add_relations(
            txn,
            [
                RelationRow(
                    Relation(rel_type, target), nid, f"${nid}", 1, nid, "m.room.message", ALICE, nid
                )
                for rel_type, target, nid in said
            ],
        )

    await database.write("fill", fill_thread)
    assert await store.get_retained(3, range(1, 10)) == {1, 3, 4, 6, 7, 8}
    assert await store.get_retained(3, [2, 4]) == {4}
    assert await store.get_retained(9, range(1, 10)) == {9}
    assert await store.get_retained(99, range(1, 10)) == frozenset()


async def test_redacted_messages_are_found_by_their_redactions(database: Database) -> None:
    store = HistoryPurgeStore(database)

    def fill_redactions(txn: WriteTransaction) -> None:
        insert_history(txn)
        # 7 redacted 3, and 9 arrived too late; 5 redacted a state event; 11 is in another room
        redactions = [("$3", 7), ("$3", 9), ("$2", 5), ("$11", 1)]
        txn.execute_many("INSERT INTO redactions (redacts, event_nid) VALUES (?, ?)", redactions)
        txn.execute_many(
            "UPDATE events SET redacted_by = ? WHERE event_nid = ?", [(7, 3), (5, 2), (1, 11)]
        )

    await database.write("fill", fill_redactions)
    assert await store.get_redacted(1, range(1, 10)) == {
        7: PurgeableMessage(3, "$3", 3, 3, ALICE, b""),
        5: None,
    }
    assert await store.get_redacted(1, [9]) == {}
    await database.write(
        "purge", PurgingStore(database).purge, 1, pruned_pdus(3), PurgeCause.PURGE, NOW
    )
    assert await store.get_redacted(1, range(1, 10)) == {5: None}


async def test_rooms_that_nobody_remembers_are_purged(database: Database) -> None:
    store = HistoryPurgeStore(database)
    await database.write("fill", insert_history)
    forget = "UPDATE memberships SET forgotten = ?, membership = 'leave' WHERE room_nid = 1"
    await database.write("forget", lambda txn: txn.execute(forget, (1,)))
    assert (await store.record_forgotten(0, 1, NOW)).count == 1
    assert (await store.record_forgotten(1, 10, NOW)).count == 1
    assert not await store.start_forgotten(NOW - 1, NOW, "early")
    await database.write("remember", lambda txn: txn.execute(forget, (0,)))
    assert await store.start_forgotten(NOW, NOW, "none")  # the room was checked
    assert await store.get_active() is None
    await database.write("forget", lambda txn: txn.execute(forget, (1,)))
    await store.record_forgotten(0, 10, NOW)
    assert await store.start_forgotten(NOW, NOW, "purge")
    active = await store.get_active()
    assert active is not None
    assert (active.room_nid, active.cause, active.include_local, active.upto_nid) == (
        1,
        "forgotten",
        True,
        11,
    )
    assert not await store.start_forgotten(NOW, NOW, "again")


async def test_the_write_ahead_log_is_truncated_unless_it_is_read(
    sqlite_database: Database,
) -> None:
    engine = sqlite_database.engine
    assert isinstance(engine, SQLiteEngine)
    log = engine.path.with_name(f"{engine.path.name}-wal")
    await sqlite_database.write("fill", insert_history)
    assert log.stat().st_size > 0
    reader = engine.connect_reader()
    reader.begin_snapshot()
    reader.query("SELECT 1 FROM rooms", ())
    await sqlite_database.write("more", add_room, 3)
    assert not await sqlite_database.truncate_log()
    reader.end()
    reader.close()
    assert await sqlite_database.truncate_log()
    assert log.stat().st_size == 0


@pytest.mark.parametrize("flags", [EventFlag.OUTLIER, EventFlag.REJECTED, EventFlag.SOFT_FAILED])
async def test_hidden_messages_are_purged_too(database: Database, flags: int) -> None:
    store = PurgingStore(database)
    await database.write("room", add_room)
    await database.write("event", add_event, 1, flags=flags)
    assert await store.find_rooms({1: 2}) == [1]
    assert (
        await database.write("purge", store.purge, 1, pruned_pdus(1), PurgeCause.RETENTION, NOW)
        == 1
    )
    assert await store.find_rooms({1: 2}) == []
    (row,) = (await EventStore(database).get_events([1])).values()
    assert (row.pdu, row.flags) == (b'{"content":{}}', flags | EventFlag.PURGED)


async def test_messages_to_purge_are_read_by_number_in_rooms_of_any_size(
    database: Database,
) -> None:
    plans: list[str] = []

    class Explained:
        """A transaction that records its query plan, and returns no rows."""

        def __init__(self, txn: WriteTransaction) -> None:
            self.txn = txn

        def query_in(self, sql: str, keys: Collection[int]) -> list[Row]:
            asked = "EXPLAIN QUERY PLAN" if database.engine.name == "sqlite" else "EXPLAIN"
            plans.extend(str(row) for row in self.txn.query_in(f"{asked} {sql}", keys))
            return []

    def look(txn: WriteTransaction) -> None:
        if database.engine.name != "sqlite":  # as with a large table
            txn.execute("SET LOCAL enable_seqscan = off")
        explained = cast(WriteTransaction, Explained(txn))
        assert (
            PurgingStore(database).purge(
                explained, 1, pruned_pdus(*range(100)), PurgeCause.RETENTION, NOW
            )
            == 0
        )

    await database.write("look", look)
    plan = "\n".join(plans)
    assert "events_messages_by_time" not in plan
    assert "INTEGER PRIMARY KEY" in plan or "events_pkey" in plan
