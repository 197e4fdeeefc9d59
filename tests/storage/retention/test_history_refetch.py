"""Restoring messages that were purged because nobody remembered their room, on both databases."""

from collections.abc import Sequence

from storage.engine.database import Database, WriteTransaction
from storage.engine.streams import Change, Stage, Topic
from storage.events.events import EventFlag, EventStore
from storage.events.relations import Relation
from storage.events.timelines import (
    GAPS_SQL,
    START,
    Direction,
    Gaps,
    TimelineStore,
    move_backward_extremities,
)
from storage.media.references import do_rechecks
from storage.retention.history_refetch import (
    HistoryRefetchStore,
    RefetchedMessage,
    restore_messages,
    stop_fetching_messages,
)
from storage.retention.purging import PurgeCause, PurgedMessages, PurgingStore
from tests.helpers.history_rows import (
    ALICE,
    NOW,
    OWN,
    SHOWN,
    insert_history,
    pruned_pdus,
    select_rows,
)

GONE = SHOWN | EventFlag.PURGED
WHOLE = b'{"content":{"url":"mxc://example.org/x3"}}'


async def forget(database: Database, *nids: int, cause: PurgeCause = PurgeCause.FORGOTTEN) -> None:
    await database.write("purge", PurgingStore(database).purge, 1, pruned_pdus(*nids), cause, NOW)


async def restore(database: Database, *regained: RefetchedMessage) -> int:
    return await database.write("restore", restore_messages, 1, regained)


async def states(database: Database, *nids: int) -> Sequence[tuple[int, int | None, bool]]:
    """Return flags, the redaction, and whether there is content."""
    events = await EventStore(database).get_events(nids)
    return [(events[nid].flags, events[nid].redacted_by, b"url" in events[nid].pdu) for nid in nids]


async def test_content_is_restored_with_derived_data(database: Database) -> None:
    received: list[Change] = []
    await database.write("fill", insert_history)
    sql = (
        "INSERT INTO media (media_id, user_id, hash, type, size, created_ts,"
        " last_access_ts, authenticated)"
        " VALUES ('x3', ?, ?, '', 1, 1, 1, 1)"
    )
    await database.write("files", lambda txn: txn.execute(sql, (ALICE, bytes(32))))
    await forget(database, 1, 3, 5)
    await database.write("look", do_rechecks, OWN, 100, NOW, 10)
    unreferenced = "SELECT unreferenced_ts FROM tracked_media WHERE media_id = 'x3'"
    assert await database.read("read", select_rows, unreferenced) == [(NOW,)]
    assert await states(database, 3) == [(GONE | EventFlag.FORGOTTEN, 3, False)]
    database.streams.subscribe(received.extend, Topic.PURGED, Topic.RELATION, stage=Stage.NOTIFY)
    before = database.streams.current()

    related = Relation("m.thread", "$1")
    assert await restore(database, RefetchedMessage(3, WHOLE, None, related)) == 1
    assert await states(database, 1, 3) == [
        (GONE | EventFlag.FORGOTTEN, 1, False),
        (SHOWN, None, True),
    ]
    assert await database.read("read", select_rows, "SELECT event_nid, target FROM relations") == [
        (3, "$1")
    ]
    assert await database.read("read", select_rows, "SELECT event_nid FROM search_queue") == [(3,)]
    assert await database.read("read", select_rows, unreferenced) == [(None,)]
    page = await TimelineStore(database).get_page(1, START, None, Direction.FORWARDS, 5)
    assert [nid for _, nid in page] == [2, 3, 4, 6, 7]
    assert [change.detail for change in received] == ["$1", PurgedMessages(1, [3])]
    assert (await EventStore(database).get_content_changes(0, before)).changed_rooms == {1}, (
        "other nodes hear of it"
    )
    assert await restore(database, RefetchedMessage(3, WHOLE, None, related)) == 0, (
        "it is restored already"
    )


async def test_only_messages_of_forgotten_rooms_are_restored(database: Database) -> None:
    await database.write("fill", insert_history)
    await forget(database, 1, cause=PurgeCause.RETENTION)
    await forget(database, 3, cause=PurgeCause.PURGE)
    await forget(database, 1, 3, 5)
    assert (
        await restore(
            database, *(RefetchedMessage(nid, WHOLE, None, None) for nid in (1, 2, 3, 7, 11, 99))
        )
        == 0
    )
    assert await states(database, 1, 3) == [(GONE, 1, False), (GONE, 3, False)]
    assert await restore(database, RefetchedMessage(5, WHOLE, None, None)) == 1


async def test_redacted_messages_stay_without_content(database: Database) -> None:
    def redact(txn: WriteTransaction) -> None:
        insert_history(txn)
        txn.execute("UPDATE events SET redacted_by = 9 WHERE event_nid = 1")
        txn.execute("INSERT INTO redactions (redacts, event_nid) VALUES ('$3', 9)")
        txn.execute("INSERT INTO redactions (redacts, event_nid) VALUES ('$5', 7)")

    await database.write("fill", redact)
    await forget(database, 1, 3, 5)
    # one redacted before the purge, one after it; 7 has arrived while the redaction of 5 was
    # checked
    known = frozenset({9})
    given = (
        RefetchedMessage(1, None, None, None),
        RefetchedMessage(3, None, 9, None, known),
        RefetchedMessage(5, WHOLE, None, None),
    )
    assert await restore(database, *given) == 2
    assert await states(database, 1, 3, 5) == [
        (SHOWN, 9, False),
        (SHOWN, 9, False),
        (GONE | EventFlag.FORGOTTEN, 5, False),
    ]
    assert await restore(database, RefetchedMessage(5, WHOLE, None, None, frozenset({7}))) == 1, (
        "that one had no effect"
    )


async def test_gaps_name_purged_messages_until_fetching_stops(database: Database) -> None:
    timelines, store = TimelineStore(database), HistoryRefetchStore(database)
    await database.write("fill", insert_history)
    await forget(database, 1, 3, 5)
    await forget(database, 7, cause=PurgeCause.PURGE)
    assert await timelines.get_gaps(1, 0, 100) == Gaps([], "$5")
    assert await timelines.get_gaps(1, 0, 4) == Gaps([], "$3")
    assert (
        await timelines.get_gaps(1, 6, 100) == await timelines.get_gaps(2, 0, 100) == Gaps([], None)
    )
    for depth, name in ((3, "$far"), (5, "$near")):
        await database.write("end", move_backward_extremities, 1, [], [name], depth)
    assert await timelines.get_gaps(1, 0, 100) == Gaps(["$near", "$far"], "$5")
    assert await timelines.get_gaps(1, 3, 4) == Gaps(["$near"], "$3")
    assert await store.stop_fetching(1, 4, 2, 10) == 1
    assert await store.stop_fetching(1, 4, 100, 1) == 1
    assert await store.stop_fetching(1, 4, 100, 1) == 0
    assert await store.stop_fetching(2, 100, 100, 1) == 0
    assert (await timelines.get_gaps(1, 0, 100)).purged_message == "$5"
    assert await restore(database, RefetchedMessage(3, WHOLE, None, None)) == 0
    await database.write("give up", stop_fetching_messages, [2, 5, 7])
    assert (await timelines.get_gaps(1, 0, 100)).purged_message is None
    assert await states(database, 2, 5, 7) == [
        (SHOWN, None, True),
        (GONE, 5, False),
        (GONE, 7, False),
    ]


async def test_rooms_that_were_never_forgotten_cost_one_lookup_in_an_empty_index(
    database: Database,
) -> None:
    await database.write("fill", insert_history)

    def explain(txn: WriteTransaction) -> str:
        is_sqlite = database.engine.name == "sqlite"
        if not is_sqlite:  # as with a large table
            txn.execute("SET LOCAL enable_seqscan = off")
        asked = "EXPLAIN QUERY PLAN" if is_sqlite else "EXPLAIN"
        return "\n".join(str(row) for row in txn.query(f"{asked} {GAPS_SQL}", (1, 0, 9, 1, 0, 9)))

    assert "events_forgotten_by_depth" in await database.write("explain", explain)
