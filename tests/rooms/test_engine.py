"""The room engine: what is sent is there once, in one chain, on one node and on two."""

from collections.abc import Sequence

import pytest
from twisted.internet.defer import Deferred, gatherResults

from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.event_signing import sign_event
from federation.protocol.events import StateKey, parse_event
from federation.protocol.ids import RoomID
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from federation.rooms.drafts import Draft
from federation.rooms.room_events import StoredEvent
from storage.database import Database
from storage.sent_transactions import AlreadySent, SentTransaction
from tests.helpers.rooms import ALICE, BOB, RoomParts

VERSIONS = list(ROOM_VERSIONS.values())


@pytest.fixture
def parts(database: Database) -> RoomParts:
    return RoomParts(database)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.identifier)
async def test_people_meet_and_talk(sqlite_database: Database, version: RoomVersion) -> None:
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
async def test_events_are_whole_signed_pdus(sqlite_database: Database, version: RoomVersion) -> None:
    parts = RoomParts(sqlite_database)
    room_id = await parts.create(version=version)
    sent = await parts.send(room_id, ALICE, "salom")
    parsed = parse_event(version, sent.event.pdu)
    assert parsed.event_id == sent.event.event_id
    assert parsed.room_id == room_id
    unsigned = {key: value for key, value in sent.event.pdu.items() if key != "signatures"}
    again = sign_event(version, unsigned, parts.identity.server_name, parts.identity.key)
    assert again["signatures"] == sent.event.pdu["signatures"]
    state = await (await parts.engine.get_snapshot(room_id)).state.load_all()
    expected = {
        state[key].event.event_id for key in (StateKey("m.room.member", ALICE), StateKey("m.room.power_levels", ""))
    }
    if not version.room_id_is_create_hash:
        expected.add(state[StateKey("m.room.create", "")].event.event_id)
    assert set(sent.event.auth_events) == expected


async def test_who_is_not_in_the_room_cannot_speak(parts: RoomParts) -> None:
    room_id = await parts.create()
    with pytest.raises(Forbidden):
        await parts.send(room_id, BOB, "let me in")
    assert await parts.bodies(room_id) == []


async def test_unknown_room(parts: RoomParts) -> None:
    with pytest.raises(NotFound):
        await parts.send(RoomID("!nowhere:a.test"), ALICE, "hello?")


async def test_a_request_is_whole_or_not_at_all(parts: RoomParts) -> None:
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


async def test_a_repeated_request_is_not_carried_out_again(parts: RoomParts) -> None:
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
    assert await parts.bodies(room_id) == ["from the first node", "from the second", "and the first again"]


async def test_two_rooms_made_in_the_same_millisecond(sqlite_database: Database) -> None:
    parts = RoomParts(sqlite_database)
    parts.tick = lambda: 1_700_000_000_000  # type: ignore[method-assign]
    parts.__post_init__()
    assert await parts.create() != await parts.create()


async def test_redaction_takes_the_content_away(parts: RoomParts) -> None:
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


async def test_redaction_by_one_who_may_not_is_refused(parts: RoomParts) -> None:
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


async def test_same_state_again_makes_no_event(parts: RoomParts) -> None:
    room_id = await parts.create()
    first = await parts.send(room_id, ALICE, {"name": "Hovli"}, "m.room.name", "")
    again = await parts.send(room_id, ALICE, {"name": "Hovli"}, "m.room.name", "", unless_same=True)
    assert again.event.event_id == first.event.event_id


async def test_what_a_state_event_replaced_is_kept(parts: RoomParts) -> None:
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
