"""Sticky events between servers. Proposal: MSC4354"""

from pathlib import Path

from federation.protocol.ids import EventID
from federation.rooms.sticky_rechecks import WaitingSenders
from storage.engine.database import Database
from tests.helpers.clocks import settle
from tests.helpers.federated_rooms import NORTH, Shared, create_room, shared
from tests.helpers.network import Network
from tests.helpers.recording_wire import RecordingWire, pretend_member
from tests.helpers.room_actions import ok, say
from tests.helpers.server import TestServer, User

PEER = "peer.example"


def stick(user: User, room_id: str, key: str) -> str:
    path = (
        f"/_matrix/client/v3/rooms/{room_id}/send/org.example.member/{key}"
        f"?sticky_duration_ms=600000"
    )
    return str(ok(user.put(path, {"key": key}))["event_id"])


def sticky_in(user: User, room_id: str) -> list[str]:
    filter_ = '{"room":{"timeline":{"limit":1}}}'
    room = ok(user.get(f"/_matrix/client/v3/sync?filter={filter_}"))["rooms"]["join"][room_id]
    return [event["event_id"] for event in room.get("msc4354_sticky", {}).get("events", [])]


async def test_an_event_is_sticky_on_the_other_server(network: Network) -> None:
    room = await shared(network)
    network.start_sending()
    network.settle()
    event_id = stick(room.alice, room.room_id, "laptop")
    say(room.alice, room.room_id, "later")
    network.settle()
    assert sticky_in(room.bob, room.room_id) == [event_id]
    network.clock.advance(600)
    assert sticky_in(room.bob, room.room_id) == []


def keys(wire: RecordingWire) -> list[str]:
    return [
        pdu["content"]["key"]
        for _, body in wire.transactions(PEER)
        for pdu in body["pdus"]
        if pdu["type"] == "org.example.member"
    ]


async def test_a_joining_server_gets_sticky_events(
    tmp_path: Path, sqlite_database: Database
) -> None:
    wire = RecordingWire()
    server = TestServer(tmp_path, sqlite_database, wire=wire)
    server.app.federation_sender.sender.start()
    alice = server.register("alice")
    room_id = create_room(alice)
    for key in ("laptop", "phone"):
        stick(alice, room_id, key)
    settle(server)
    await pretend_member(server, room_id, f"@bob:{PEER}")
    settle(server)
    assert keys(wire) == ["laptop", "phone"]
    await pretend_member(server, room_id, f"@carol:{PEER}")
    settle(server)
    assert keys(wire) == ["laptop", "phone"]


async def test_an_outage_with_many_messages_loses_no_sticky_event(
    tmp_path: Path, sqlite_database: Database
) -> None:
    wire = RecordingWire()
    server = TestServer(tmp_path, sqlite_database, wire=wire)
    server.app.federation_sender.sender.start()
    alice = server.register("alice")
    room_id = create_room(alice)
    await pretend_member(server, room_id, f"@bob:{PEER}")
    wire.down.add(PEER)
    say(alice, room_id, "lost")
    settle(server)
    stick(alice, room_id, "laptop")
    for number in range(80):
        say(alice, room_id, f"m{number}")
    settle(server)
    wire.down.clear()
    wire.requests.clear()
    for _ in range(3):
        server.clock.advance(60)
        settle(server)
    assert keys(wire) == ["laptop"]
    assert wire.texts(PEER)[-1] == "m79"
    assert all(len(body["pdus"]) <= 50 for _, body in wire.transactions(PEER))


async def soft_fail(room: Shared) -> EventID:
    """A sticky event of Bob's that the north soft-fails, since Alice removes him meanwhile."""
    before = await room.south.last(room.room_id)
    made = await room.south.build_next(
        room.room_id,
        room.bob.user_id,
        "org.example.member",
        {"key": "late"},
        prev=before,
        sticky_ms=600_000,
    )
    path = f"/_matrix/client/v3/rooms/{room.room_id}"
    ok(room.alice.post(f"{path}/kick", {"user_id": room.bob.user_id}))
    await room.south.push(NORTH, [made.pdu])
    stored = await room.north.find(room.room_id, made.event_id)
    assert stored is not None
    assert not stored.in_timeline
    assert sticky_in(room.alice, room.room_id) == []
    return made.event_id


async def test_a_soft_failed_sticky_event_is_shown_when_its_sender_rejoins(
    network: Network,
) -> None:
    room = await shared(network)
    event_id = await soft_fail(room)
    since = ok(room.alice.get("/_matrix/client/v3/sync"))["next_batch"]
    await adopt_again(room)
    update = ok(room.alice.get(f"/_matrix/client/v3/sync?since={since}"))["rooms"]["join"][
        room.room_id
    ]
    assert [event["event_id"] for event in update["msc4354_sticky"]["events"]] == [event_id]
    assert event_id not in {event["event_id"] for event in update["timeline"]["events"]}
    assert sticky_in(room.alice, room.room_id) == [event_id]


async def test_an_event_soft_failed_by_another_process_is_shown_when_its_sender_rejoins(
    network: Network,
) -> None:
    room = await shared(network)
    event_id = await soft_fail(room)
    rechecks = room.north.room_engine.sticky_rechecks
    # private: as in a process that only knows that another one wrote
    rechecks._waiting = WaitingSenders()
    rechecks._on_remote_write(0, 0)  # private: as above
    await adopt_again(room)
    assert sticky_in(room.alice, room.room_id) == [event_id]


async def adopt_again(room: Shared) -> None:
    """Bob of the south joins once more, as the north sees it."""
    snapshot = await room.north.room(room.room_id)
    state = {key: stored.event for key, stored in (await snapshot.state.load_all()).items()}
    prev, user_id = await room.north.last(room.room_id), room.bob.user_id
    join = await room.south.build(
        snapshot.version,
        room.room_id,
        prev,
        state,
        user_id,
        "m.room.member",
        {"membership": "join"},
        user_id,
    )
    await room.south.push(NORTH, [join.pdu])


def test_a_server_with_many_waiting_senders_does_not_evict_others() -> None:
    who_waits = WaitingSenders(max_senders=10)
    who_waits.add(1, f"@alice:{NORTH}")
    for number in range(50):
        who_waits.add(number, f"@mallory{number}:{PEER}")
    who_waits.add(2, f"@bob:{NORTH}")

    assert (1, f"@alice:{NORTH}") in who_waits
    assert (2, f"@bob:{NORTH}") in who_waits
    assert sum((number, f"@mallory{number}:{PEER}") in who_waits for number in range(50)) == 8
    who_waits.discard(1, f"@alice:{NORTH}")
    assert (1, f"@alice:{NORTH}") not in who_waits
    who_waits.add(60, f"@mallory60:{PEER}")
    assert (60, f"@mallory60:{PEER}") in who_waits
