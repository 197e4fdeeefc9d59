"""The room engine: each sent event is stored once, in one chain, on one node and on two."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure

from federation.protocol.errors import Forbidden
from federation.protocol.event_signing import sign_event
from federation.protocol.events import StateKey, parse_event
from federation.protocol.ids import RoomID
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from federation.rooms.event_drafts import Draft
from federation.rooms.events import StoredEvent
from federation.rooms.timelines import Timelines
from storage.engine.database import Database, SQLiteConfig
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventStore
from storage.events.timelines import TimelineStore
from storage.rooms.rooms import move_head
from storage.rooms.sent_transactions import AlreadySent, SentTransaction
from storage.rooms.summaries import RoomSummaryStore
from tests.helpers.rooms import ALICE, BOB, RoomParts

VERSIONS = list(ROOM_VERSIONS.values())


@pytest.fixture
def parts(database: Database) -> RoomParts:
    return RoomParts(database)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.identifier)
async def test_members_join_and_send_messages(
    sqlite_database: Database, version: RoomVersion
) -> None:
    parts = RoomParts(sqlite_database)
    room_id = await parts.create(version=version)
    await parts.member(room_id, BOB, "join")
    await parts.send(room_id, BOB, "salom")
    await parts.send(room_id, ALICE, "yaxshimisiz")
    assert await parts.bodies(room_id) == ["salom", "yaxshimisiz"]
    snapshot = await parts.engine.get_snapshot(room_id)
    assert snapshot.head.joined_count == 2
    assert len(snapshot.head.extremities) == 1


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.identifier)
async def test_events_are_complete_signed_pdus(
    sqlite_database: Database, version: RoomVersion
) -> None:
    parts = RoomParts(sqlite_database)
    room_id = await parts.create(version=version)
    sent = await parts.send(room_id, ALICE, "salom")
    parsed = parse_event(version, sent.event.pdu)
    assert parsed.event_id == sent.event.event_id
    assert parsed.room_id == room_id
    unsigned = {key: value for key, value in sent.event.pdu.items() if key != "signatures"}
    repeated = sign_event(version, unsigned, parts.identity.server_name, parts.identity.key)
    assert repeated["signatures"] == sent.event.pdu["signatures"]
    state = await (await parts.engine.get_snapshot(room_id)).state.load_all()
    expected = {
        state[key].event.event_id
        for key in (StateKey("m.room.member", ALICE), StateKey("m.room.power_levels", ""))
    }
    if not version.room_id_is_create_hash:
        expected.add(state[StateKey("m.room.create", "")].event.event_id)
    assert set(sent.event.auth_events) == expected


async def test_a_user_outside_the_room_cannot_send(parts: RoomParts) -> None:
    room_id = await parts.create()
    with pytest.raises(Forbidden):
        await parts.send(room_id, BOB, "let me in")
    assert await parts.bodies(room_id) == []


async def test_an_unknown_room_is_not_found(parts: RoomParts) -> None:
    with pytest.raises(Forbidden):
        await parts.send(RoomID("!nowhere:a.test"), ALICE, "hello?")


async def test_a_request_is_applied_completely_or_not_at_all(parts: RoomParts) -> None:
    room_id = await parts.create()
    drafts = [
        Draft("m.room.message", ALICE, {"body": "one"}),
        Draft("m.room.message", BOB, {"body": "not allowed"}),
    ]
    with pytest.raises(Forbidden):
        await parts.engine.send(room_id, drafts)
    assert await parts.bodies(room_id) == []
    await parts.send(room_id, ALICE, "two")
    assert await parts.bodies(room_id) == ["two"]


async def test_a_repeated_request_sends_no_second_event(parts: RoomParts) -> None:
    room_id = await parts.create()
    sent = SentTransaction(ALICE, "DEVICE", "PUT send", "m1")
    first = await parts.send(room_id, ALICE, "once", sent=sent)
    with pytest.raises(AlreadySent) as caught:
        await parts.send(room_id, ALICE, "once", sent=sent)
    assert caught.value.response == b'{"event_id":"%s"}' % first.event.event_id.encode()
    other_node = RoomParts(parts.database)
    with pytest.raises(AlreadySent):
        await other_node.send(room_id, ALICE, "once", sent=sent)
    assert await parts.bodies(room_id) == ["once"]


async def test_two_nodes_build_upon_each_other(parts: RoomParts) -> None:
    room_id = await parts.create()
    other = RoomParts(parts.database)
    await other.member(room_id, BOB, "join")
    await parts.send(room_id, BOB, "from the first node")
    await other.send(room_id, ALICE, "from the second")
    await parts.send(room_id, ALICE, "and the first again")
    head = await parts.rooms.get_head((await parts.engine.get_snapshot(room_id)).room.room_nid)
    assert len(head.extremities) == 1
    assert head.joined_count == 2
    assert await parts.bodies(room_id) == [
        "from the first node",
        "from the second",
        "and the first again",
    ]


async def test_two_rooms_created_in_one_millisecond_have_different_ids(
    sqlite_database: Database,
) -> None:
    parts = RoomParts(sqlite_database)
    parts.tick = lambda: 1_700_000_000_000  # type: ignore[method-assign]
    parts.__post_init__()
    assert await parts.create() != await parts.create()


async def test_a_redaction_removes_the_content(parts: RoomParts) -> None:
    room_id = await parts.create()
    await parts.member(room_id, BOB, "join")
    secret = await parts.send(room_id, ALICE, "secret")
    redaction = await parts.redact(room_id, ALICE, secret.event.event_id)
    for node in (parts, RoomParts(parts.database)):
        event = await node.events.get_event(secret.room_nid, secret.event.event_id)
        assert event is not None
        assert event.event.content == {}
        assert event.redacted_by == redaction.nid
        assert b"secret" not in event.pdu


async def test_a_redaction_without_permission_is_refused(parts: RoomParts) -> None:
    room_id = await parts.create()
    await parts.send(room_id, ALICE, {"users_default": 0, "redact": 50}, "m.room.power_levels", "")
    message = await parts.send(room_id, ALICE, "stays")
    await parts.member(room_id, BOB, "join")
    with pytest.raises(Forbidden):  # of the same server, but not the sender
        await parts.redact(room_id, BOB, message.event.event_id)
    event = await parts.events.get_event(message.room_nid, message.event.event_id)
    assert event is not None
    assert event.event.content["body"] == "stays"
    own = await parts.send(room_id, BOB, "goes")
    await parts.redact(room_id, ALICE, own.event.event_id)
    event = await parts.events.get_event(own.room_nid, own.event.event_id)
    assert event is not None
    assert event.event.content == {}


async def test_setting_the_same_state_again_makes_no_event(parts: RoomParts) -> None:
    room_id = await parts.create()
    first = await parts.send(room_id, ALICE, {"name": "Hovli"}, "m.room.name", "")
    repeated = await parts.send(
        room_id, ALICE, {"name": "Hovli"}, "m.room.name", "", unless_same=True
    )
    assert repeated.event.event_id == first.event.event_id


async def test_the_replaced_state_event_is_stored(parts: RoomParts) -> None:
    room_id = await parts.create()
    first = await parts.send(room_id, ALICE, {"name": "one"}, "m.room.name", "")
    second = await parts.send(room_id, ALICE, {"name": "two"}, "m.room.name", "")
    assert (first.replaces, second.replaces) == (None, first.nid)


@pytest.mark.reactor
async def test_many_senders_at_once_neither_conflict_nor_fork(threaded_database: Database) -> None:
    parts = RoomParts(threaded_database)
    room_id = await parts.create()

    def send(number: int) -> "Deferred[StoredEvent]":
        return Deferred.fromCoroutine(parts.send(room_id, ALICE, str(number)))

    sent: Sequence[StoredEvent] = await gatherResults([send(number) for number in range(200)])
    assert len({event.event.event_id for event in sent}) == 200
    assert sorted(map(int, await parts.bodies(room_id))) == list(range(200))
    depths = sorted(event.event.depth for event in sent)
    assert depths == list(range(depths[0], depths[0] + 200)), "one chain"


async def send_together(
    parts: RoomParts, room_id: RoomID, requests: Sequence[Sequence[Draft]]
) -> list[list[StoredEvent] | Failure]:
    """Return the results of requests that wait together and become one chain."""
    results: dict[int, list[StoredEvent] | Failure] = {}

    def on_changes(_changes: Sequence[Change]) -> None:
        unsubscribe()
        for index, drafts in enumerate(requests):
            Deferred.fromCoroutine(parts.engine.send(room_id, drafts)).addBoth(
                partial(results.__setitem__, index)
            )

    unsubscribe = parts.database.streams.subscribe(on_changes, stage=Stage.NOTIFY)
    await parts.send(room_id, ALICE, "while this is written, others come")
    return [results[index] for index in range(len(requests))]


def name(text: str, *, unless_same: bool = False) -> Draft:
    return Draft("m.room.name", ALICE, {"name": text}, "", unless_same=unless_same)


class Broken(dict[str, Any]):
    """A content that raises an error when it is read."""

    def get(self, key: str, default: Any = None) -> Any:
        raise RuntimeError("broken")


async def test_a_failing_request_does_not_affect_others(parts: RoomParts) -> None:
    room_id = await parts.create()
    broken = Draft("m.room.member", ALICE, Broken(), ALICE)
    before, nobody, after = await send_together(
        parts,
        room_id,
        [
            [Draft("m.room.message", ALICE, {"body": "one"})],
            [broken],
            [Draft("m.room.message", ALICE, {"body": "two"})],
        ],
    )
    assert isinstance(nobody, Failure)
    assert nobody.check(RuntimeError)
    assert isinstance(before, list)
    assert isinstance(after, list)
    assert (await parts.bodies(room_id))[1:] == ["one", "two"]


async def test_the_same_state_twice_in_one_batch_makes_one_event(parts: RoomParts) -> None:
    room_id = await parts.create()
    await parts.engine.send(room_id, [name("old")])
    first, repeated = await send_together(
        parts, room_id, [[name("new")], [name("new", unless_same=True)]]
    )
    assert isinstance(first, list)
    assert isinstance(repeated, list)
    assert repeated[0].event.event_id == first[0].event.event_id


@pytest.mark.parametrize("redacted_first", [True, False])
async def test_a_state_event_is_redacted_while_it_is_replaced(
    parts: RoomParts, redacted_first: bool
) -> None:
    room_id = await parts.create()
    (old,) = await parts.engine.send(room_id, [name("old")])
    target = old.event.event_id
    redaction = Draft("m.room.redaction", ALICE, {"redacts": target}, redacts=target)
    requests = [[redaction], [name("new")]]
    await send_together(parts, room_id, requests if redacted_first else requests[::-1])
    room = (await parts.engine.get_snapshot(room_id)).room
    summary = (await RoomSummaryStore(parts.database).get_summaries([room.room_nid]))[room.room_nid]
    assert summary.name == "new"


async def test_a_redacted_membership_loses_its_name_everywhere(parts: RoomParts) -> None:
    room_id = await parts.create()
    (joined,) = await parts.engine.send(
        room_id, [Draft("m.room.member", BOB, {"membership": "join", "displayname": "Secret"}, BOB)]
    )
    assert [row.display_name for row in (await parts.memberships.of_user(BOB)).values()] == [
        "Secret"
    ]
    await parts.redact(room_id, ALICE, joined.event.event_id)
    assert [row.display_name for row in (await parts.memberships.of_user(BOB)).values()] == [None]


async def test_concurrent_repeated_requests_send_one_event(parts: RoomParts) -> None:
    room_id = await parts.create()
    names = [
        SentTransaction(ALICE, "DEVICE", f"send/{room_id}/m.room.message", str(number))
        for number in range(30)
    ]
    drafts = [Draft("m.room.message", ALICE, {"body": sent.txn_id}, sent=sent) for sent in names]
    for draft in drafts:
        await parts.engine.send(room_id, [draft])
    *repeated, new = await send_together(
        parts,
        room_id,
        [*([draft] for draft in drafts), [Draft("m.room.message", ALICE, {"body": "new"})]],
    )
    assert all(isinstance(result, Failure) and result.check(AlreadySent) for result in repeated)
    assert isinstance(new, list)


async def test_a_repeated_request_is_answered_though_it_would_be_refused_now(
    parts: RoomParts,
) -> None:
    room_id = await parts.create()
    await parts.member(room_id, BOB, "join")
    draft = Draft(
        "m.room.message", BOB, {"body": "salom"}, sent=SentTransaction(BOB, "DEVICE", "send", "1")
    )
    (sent,) = await parts.engine.send(room_id, [draft])
    await parts.member(room_id, ALICE, "ban", BOB)
    with pytest.raises(AlreadySent) as repeated:
        await parts.engine.send(room_id, [draft])
    assert repeated.value.response == b'{"event_id":"%s"}' % sent.event.event_id.encode()


async def test_extremities_above_the_limit_of_an_event_are_cited_by_the_next(
    parts: RoomParts,
) -> None:
    room_id = await parts.create()
    sent = [await parts.send(room_id, ALICE, str(number)) for number in range(25)]
    head = (await parts.engine.get_snapshot(room_id)).head
    ends = tuple((event.nid, str(event.event.event_id)) for event in sent)
    scattered = replace(head, version=head.version + 1, extremities=ends)
    await parts.database.write("scatter", move_head, sent[0].room_nid, head.version, scattered)
    one = await parts.send(room_id, ALICE, "one")
    assert len(one.event.prev_events) == 20
    extremities = (await parts.engine.get_snapshot(room_id)).head.extremities
    assert [event_id for _, event_id in extremities] == [
        *(event_id for _, event_id in ends[20:]),
        one.event.event_id,
    ]
    two = await parts.send(room_id, ALICE, "two")
    assert set(two.event.prev_events) == {event_id for _, event_id in extremities}
    assert len((await parts.engine.get_snapshot(room_id)).head.extremities) == 1


async def test_a_state_view_does_not_grow_with_lookups_of_missing_keys(parts: RoomParts) -> None:
    room_id = await parts.create()
    state = (await parts.engine.get_snapshot(room_id)).state
    create = StateKey("m.room.create", "")
    for number in range(5000):
        assert await state.get(StateKey("org.example", str(number))) is None
    assert (await state.load([create, StateKey("org.example", "0")])).keys() == {create}
    assert len(state._entries) < 3000  # private: the size in memory shows nowhere else


async def test_an_arrival_read_before_its_announcement_comes_once(
    sqlite_database: Database,
) -> None:
    parts = RoomParts(sqlite_database)
    room_id = await parts.create()
    sent = await parts.send(room_id, ALICE, "once")
    # a node whose streams have not heard yet of what a reading thread of it finds committed
    streams = Streams(sent.position - 1 if sent.position is not None else 0)
    timelines = Timelines(store=TimelineStore(sqlite_database), streams=streams, capacity=10)
    await timelines.get_latest({sent.room_nid: (0, 2**53)}, 10)
    row = (await EventStore(sqlite_database).get_events([sent.nid]))[sent.nid]
    streams.publish(
        [Change(sent.position or 0, Topic.EVENT, room_id, ALICE, row)], sent.position or 0
    )
    stretch = (await timelines.get_latest({sent.room_nid: (0, 2**53)}, 10))[sent.room_nid]
    assert [arrival.event_nid for arrival in stretch.arrivals].count(sent.nid) == 1


async def test_redacted_content_is_not_left_in_the_file(
    sqlite: SQLiteConfig, sqlite_database: Database
) -> None:
    parts = RoomParts(sqlite_database)
    room_id = await parts.create()
    secret = await parts.send(room_id, ALICE, "the treasure is under the mulberry tree")
    await parts.redact(room_id, ALICE, secret.event.event_id)
    assert b"mulberry" not in read_file(sqlite)


def read_file(sqlite: SQLiteConfig) -> bytes:
    """The database as it lies on the disk once the log is written into it."""
    with closing(sqlite3.connect(sqlite.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(sqlite.path).read_bytes()
