"""Relations of events as they are stored: on both databases, of local and of remote events."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from federation.rooms.events import StoredEvent
from storage.engine.database import Database, SQLiteConfig
from storage.events.relations import (
    REFERENCE,
    REPLACE,
    THREAD,
    Children,
    Parent,
    RelationFilter,
    RelationStore,
)
from storage.events.timelines import START, Direction, TimelinePlace
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
from tests.helpers.peers import join, servers
from tests.helpers.rooms import ALICE, BOB, RoomParts

END = TimelinePlace(2**53, 2**53)


def child(rel_type: str, parent: StoredEvent, **content: object) -> dict[str, object]:
    """The content of a message that relates to another."""
    return {
        "body": "child",
        "m.relates_to": {"rel_type": rel_type, "event_id": parent.event.event_id},
        **content,
    }


async def children_of(
    store: RelationStore, events: Sequence[StoredEvent], reader: str, ignored: Sequence[str]
) -> Mapping[int, Sequence[Children]]:
    parents = [
        Parent(each.nid, each.event.event_id, each.room_nid, each.event.type, each.event.sender)
        for each in events
    ]
    types = await store.find_parents([each.event_id for each in parents])
    rel_types = {rel_type for each in types.values() for rel_type in each}
    having = [each for each in parents if each.event_id in types]
    return await store.get_children(having, rel_types, reader, ignored) if having else {}


async def test_children_threads_and_annotations_are_stored(database: Database) -> None:
    parts = RoomParts(database)
    store = RelationStore(database)
    room_id = await parts.create()
    await parts.member(room_id, BOB, "join")
    parent, other = (
        await parts.send(room_id, ALICE, "parent"),
        await parts.send(room_id, ALICE, "other"),
    )
    edits = [
        await parts.send(room_id, ALICE, child(REPLACE, parent, **{"m.new_content": {}}))
        for _ in range(2)
    ]
    await parts.send(room_id, BOB, child(REPLACE, parent, **{"m.new_content": {}}))
    replies = [await parts.send(room_id, sender, child(THREAD, parent)) for sender in (ALICE, BOB)]
    later = await parts.send(room_id, BOB, child(THREAD, other))
    reference = await parts.send(room_id, BOB, child(REFERENCE, replies[0]))

    nids = [parent.nid, other.nid, replies[0].nid, replies[1].nid]
    found = await children_of(store, [parent, other, *replies], ALICE, [])
    assert {nid: {group.rel_type: group for group in groups} for nid, groups in found.items()} == {
        parent.nid: {
            REPLACE: Children(REPLACE, [edits[1].nid, edits[0].nid]),
            THREAD: Children(THREAD, [replies[1].nid, replies[0].nid], 2, True),
        },
        other.nid: {THREAD: Children(THREAD, [later.nid], 1, False)},
        replies[0].nid: {REFERENCE: Children(REFERENCE, [reference.nid])},
    }
    without_bob = await children_of(store, [parent, other, *replies], ALICE, [BOB])
    assert set(without_bob) == {parent.nid}

    async def page(
        wanted: RelationFilter,
        direction: Direction,
        start: TimelinePlace,
        end: TimelinePlace | None = None,
    ) -> list[int]:
        event_id = parent.event.event_id
        rows = await store.get_page(parent.room_nid, event_id, wanted, start, end, direction, 10)
        return [nid for _, nid in rows]

    assert await page(RelationFilter(THREAD), Direction.FORWARDS, START) == [
        reply.nid for reply in replies
    ]
    assert await page(RelationFilter(THREAD, "m.room.message"), Direction.BACKWARDS, END) == [
        replies[1].nid,
        replies[0].nid,
    ]
    assert await page(RelationFilter(THREAD, "m.sticker"), Direction.BACKWARDS, END) == []
    first = TimelinePlace(replies[0].depth, replies[0].nid)
    assert await page(RelationFilter(THREAD), Direction.BACKWARDS, END, first) == [replies[1].nid]
    assert await page(RelationFilter(THREAD), Direction.FORWARDS, START, first) == [replies[0].nid]
    assert (await page(RelationFilter(levels=3), Direction.BACKWARDS, END))[0] == reference.nid

    async def threads(
        start: TimelinePlace = END, ignored: list[str] | None = None, participated: bool = False
    ) -> list[int]:
        rows = await store.get_threads(
            parent.room_nid, start, 10, BOB, ignored or [], participated=participated
        )
        return [root for _, root in rows]

    assert await threads() == [other.nid, parent.nid]
    assert await threads(first) == []
    assert await threads(TimelinePlace(replies[1].depth, replies[1].nid)) == [parent.nid]
    assert await threads(ignored=[BOB]) == [parent.nid]
    assert await threads(participated=True) == [other.nid, parent.nid]
    second = TimelinePlace(replies[1].depth, replies[1].nid)
    for end, there, with_bob in ((first, [parent.nid], []), (second, [parent.nid], [parent.nid])):
        for participated, expected in ((False, there), (True, with_bob)):
            rows = await store.get_threads(
                parent.room_nid, END, 10, BOB, [], participated=participated, end=end
            )
            assert rows == [(end, nid) for nid in expected]
        rows = await store.get_threads(
            parent.room_nid, END, 10, BOB, [BOB], participated=False, end=end
        )
        assert rows == [(first, parent.nid)]

    await parts.redact(room_id, BOB, later.event.event_id)
    assert await threads() == [parent.nid]
    assert await store.get_related(nids, [BOB], None) == {parent.nid, replies[0].nid}
    assert await store.get_related(nids, [BOB], [REFERENCE]) == {replies[0].nid}
    assert await store.get_related(nids, None, [REPLACE]) == {parent.nid}


async def test_an_annotation_is_found_again(database: Database) -> None:
    parts, store = RoomParts(database), RelationStore(database)
    room_id = await parts.create()
    parent = await parts.send(room_id, ALICE, "parent")
    relation = {"rel_type": "m.annotation", "event_id": parent.event.event_id, "key": "👍"}
    await parts.send(room_id, ALICE, {"m.relates_to": relation}, "m.reaction")
    about = (parent.room_nid, parent.event.event_id)
    assert await store.has_annotation(*about, "m.reaction", ALICE, "👍")
    assert not await store.has_annotation(*about, "m.reaction", ALICE, "🎉")
    assert not await store.has_annotation(*about, "m.reaction", BOB, "👍")
    assert not await store.has_annotation(*about, "m.sticker", ALICE, "👍")


@pytest.fixture
def counted(sqlite: SQLiteConfig, counter: QueryCounter) -> Iterator[Database]:
    database = open_inline(sqlite, counter)
    yield database
    run_coroutine(database.close(), None)


async def test_a_relation_costs_one_statement_and_one_more_in_a_thread(
    counted: Database, counter: QueryCounter
) -> None:
    parts = RoomParts(counted)
    room_id = await parts.create()
    parent = await parts.send(room_id, ALICE, "parent")

    async def cost(content: dict[str, object]) -> int:
        counter.clear()
        await parts.send(room_id, ALICE, content)
        return sum(counter.queries.values())

    plain = await cost({"body": "plain"})
    assert await cost(child(REFERENCE, parent)) == plain + 1
    assert await cost(child(THREAD, parent)) == plain + 2


async def test_children_from_other_servers_count(
    database: Database, sqlite_template: Path, tmp_path: Path
) -> None:
    other = open_inline(copy_sqlite(sqlite_template, tmp_path))
    theirs, ours = servers([other, database])
    room_id = await theirs.create(theirs.user)
    version = (await theirs.engine.get_snapshot(room_id)).version
    await join(theirs, ours, version, room_id)
    parent = await theirs.send(room_id, theirs.user, "parent")
    reply = await theirs.send(room_id, theirs.user, child(THREAD, parent))
    await ours.take(room_id, parent.event, reply.event)
    known = (await ours.events.get_in_any_room([parent.event.event_id]))[parent.event.event_id]
    stored = (await ours.events.get_in_any_room([reply.event.event_id]))[reply.event.event_id]
    store = RelationStore(database)
    assert (await children_of(store, [known], ours.user, []))[known.nid] == [
        Children(THREAD, [stored.nid], 1, False)
    ]
    redaction = await theirs.redact(room_id, theirs.user, reply.event.event_id)
    await ours.take(room_id, redaction.event)
    assert await children_of(store, [known], ours.user, []) == {}
    await other.close()
