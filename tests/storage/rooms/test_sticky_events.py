"""Stored sticky events."""

from msgspec.structs import replace

from storage.engine.database import Database
from storage.engine.streams import Change, Stage, Topic
from storage.rooms.sticky_events import (
    StickyEventStore,
    StickyRow,
    add_sticky_events,
    remove_sticky_event,
)

ROOM = "!room:example.org"
BOB = "@bob:example.org"


async def test_a_held_event_is_announced_when_it_is_released(database: Database) -> None:
    store = StickyEventStore(database)
    changes_seen: list[Change] = []
    database.streams.subscribe(changes_seen.extend, stage=Stage.NOTIFY)
    received = StickyRow(1, 7, BOB, 10, 5000)
    waiting = [
        StickyRow(2, 7, BOB, 11, 5000, is_held=True),
        StickyRow(3, 7, BOB, 12, 900, is_held=True),
    ]
    await database.write("t", add_sticky_events, ROOM, [received, *waiting])
    assert await store.get_unexpired(1000) == [received]
    assert await store.get_unexpired(5000) == []
    assert await store.get_held(7, BOB, 1000) == waiting[:1]
    assert (
        await store.get_held(8, BOB, 1000) == await store.get_held(7, "@x:example.org", 1000) == []
    )
    assert await store.get_senders_of_held(1000) == {(7, BOB)}
    assert await store.get_senders_of_held(5000) == set()
    for _ in range(2):
        await store.release(ROOM, waiting[:1])
    assert await store.get_senders_of_held(1000) == set()
    sticky = [change for change in changes_seen if change.topic is Topic.STICKY]
    assert [change.detail for change in sticky[:3]] == [received, *waiting]
    (release,) = sticky[3:]
    released = replace(waiting[0], is_held=False, position=release.position)
    assert release.detail == released
    assert set(await store.get_unexpired(1000)) == {received, released}


async def test_sticky_rows_are_deleted_with_their_content_or_after_expiry(
    database: Database,
) -> None:
    store = StickyEventStore(database)
    rows = [StickyRow(nid, 7, BOB, nid, nid * 1000) for nid in range(1, 6)]
    await database.write("t", add_sticky_events, ROOM, rows)
    await database.write("t", remove_sticky_event, 5)
    assert [row.event_nid for row in await store.get_unexpired(0)] == [1, 2, 3, 4]
    assert await store.remove_expired(3000, 2) == 2
    assert await store.remove_expired(3000, 2) == 1
    assert [row.event_nid for row in await store.get_unexpired(0)] == [4]
