"""Contents of events that were first received without them, on both databases and on another
node."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from federation.protocol.events import StateKey
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.receipt_checks import Verdict
from storage.engine.database import Database
from storage.events.events import EventStore
from storage.persist.content_restore import RESTORED_RETENTION_MS
from storage.rooms.memberships import MembershipStore
from storage.rooms.summaries import RoomSummaryStore
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.peers import Peer, copy, servers, shared_room

V11 = ROOM_VERSIONS["11"]


@pytest.fixture
def both(database: Database, sqlite_template: Path, tmp_path: Path) -> Iterator[list[Peer]]:
    """The second of them upon SQLite and PostgreSQL."""
    other = open_inline(copy_sqlite(sqlite_template, tmp_path))
    yield servers([other, database])
    run_coroutine(other.close(), None)


async def test_a_message_gets_its_content_from_the_unaltered_copy(both: list[Peer]) -> None:
    b, a = both
    room_id, joined = await shared_room(both)
    said = await b.fork(room_id, joined, "m.room.message", {"body": "said"})
    assert (
        await a.verdict(room_id, copy(V11, said.pdu, content={"body": "never said"}))
        is Verdict.REDACT
    )
    before = a.database.streams.current()
    stored = await a.find(room_id, said)
    assert stored is not None

    for pdu in ({**said.pdu, "content": {"body": "never said"}}, said.pdu, said.pdu):
        (outcome,) = await a.receiver.receive(room_id, [pdu])
        assert outcome.was_known
    after = await a.find(room_id, said)
    assert after is not None
    assert (after.event.content, after.nid, after.state_root) == (
        {"body": "said"},
        stored.nid,
        stored.state_root,
    )
    lost = await EventStore(a.database).get_content_changes(0, before)
    assert lost.redacted == [said.event_id], "other nodes are to read it anew, once"
    assert (
        await EventStore(a.database).get_content_changes(0, a.database.streams.current())
    ).redacted == []


async def test_restored_state_takes_effect(both: list[Peer]) -> None:
    b, a = both
    room_id, joined = await shared_room(both)
    name = await b.fork(room_id, joined, "m.room.name", {"name": "tea"}, "")
    assert await b.verdict(room_id, name) is Verdict.ACCEPT
    me = {"membership": "join", "displayname": "B"}
    member = await b.fork(room_id, name, "m.room.member", me, b.user)
    for event, content in (
        (name, {"name": "a lie"}),
        (member, {"membership": "join", "displayname": "a lie"}),
    ):
        assert await a.verdict(room_id, copy(V11, event.pdu, content=content)) is Verdict.REDACT
    snapshot = await a.engine.get_snapshot(room_id)
    room_nid, joined_count = snapshot.room.room_nid, snapshot.head.joined_count
    rows = await MembershipStore(a.database).get_memberships(room_nid, [b.user])
    assert rows[b.user].display_name is None

    await a.receiver.receive(room_id, [name.pdu])
    await a.receiver.receive_outliers(room_id, [member.pdu])

    summary = (await RoomSummaryStore(a.database).get_summaries([room_nid]))[room_nid]
    assert summary.name == "tea"
    repeated = (await MembershipStore(a.database).get_memberships(room_nid, [b.user]))[b.user]
    assert repeated == replace(rows[b.user], display_name="B")
    moved = await a.engine.get_snapshot(room_id)
    assert moved.head.version == snapshot.head.version + 2, (
        "nobody goes on with the state as it was read"
    )
    assert (moved.head.state_root, moved.head.joined_count) == (
        snapshot.head.state_root,
        joined_count,
    )
    stored = await moved.state.get(StateKey("m.room.name", ""))
    assert stored is not None
    assert stored.event.content == {"name": "tea"}


async def test_old_records_of_restored_events_are_deleted(both: list[Peer]) -> None:
    b, a = both
    room_id, joined = await shared_room(both)
    for body in ("one", "two"):
        event = await b.fork(room_id, joined, "m.room.message", {"body": body})
        assert (
            await a.verdict(room_id, copy(V11, event.pdu, content={"body": "never said"}))
            is Verdict.REDACT
        )
        a.now[0] += RESTORED_RETENTION_MS + 1000
        await a.receiver.receive(room_id, [event.pdu])

    assert (await EventStore(a.database).get_content_changes(0, 0)).redacted == [event.event_id]
