"""Sticky events: sent to all members of a room for a limited time. Proposals: MSC4354, MSC4480"""

from pathlib import Path
from typing import Any

import pytest

from storage.engine.database import Database
from storage.rooms.sticky_events import MAX_STICKY_MS, StickyEventStore
from tests.helpers.room_actions import ok, refused
from tests.helpers.server import TestServer, User, move_user
from tests.helpers.sliding_client import SlidingClient, a_list, finish_poll
from tests.helpers.sync_requests import Json, Rooms, ids, poll, sync

pytestmark = pytest.mark.usefixtures("compared")

MINUTE = 60_000
EXTENSION = "org.matrix.msc4354.sticky_events"
TTL = "msc4354_sticky_duration_ttl_ms"
SHORT = {"room": {"timeline": {"limit": 2}}}


def stick(
    user: User, room_id: str, key: str, duration_ms: int = 5 * MINUTE, delay_ms: int | None = None
) -> str:
    query = f"org.matrix.msc4354.sticky_duration_ms={duration_ms}"
    if delay_ms is not None:
        query += f"&org.matrix.msc4140.delay={delay_ms}"
    path = f"/_matrix/client/v3/rooms/{room_id}/send/org.example.member/{key}?{query}"
    answer = ok(user.put(path, {"msc4354_sticky_key": key}))
    return str(answer.get("event_id") or answer["delay_id"])


def sticky(answer: Json, room_id: str) -> list[Json]:
    events: list[Json] = (
        answer["rooms"]["join"][room_id].get("msc4354_sticky", {}).get("events", [])
    )
    return events


def sticky_ids(answer: Json, room_id: str) -> list[str]:
    return [event["event_id"] for event in sticky(answer, room_id)]


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


def test_a_sticky_event_has_its_duration(server: TestServer, alice: User, rooms: Rooms) -> None:
    room_id = rooms.create(alice)
    event_id = stick(alice, room_id, "laptop")
    server.clock.advance(60)
    event = ok(alice.get(f"/_matrix/client/v3/rooms/{room_id}/event/{event_id}"))
    assert event["msc4354_sticky"] == {"duration_ms": 5 * MINUTE}
    assert event["unsigned"][TTL] == 4 * MINUTE
    server.clock.advance(240)
    event = ok(alice.get(f"/_matrix/client/v3/rooms/{room_id}/event/{event_id}"))
    assert TTL not in event["unsigned"]
    plain = rooms.say(alice, room_id)
    assert "msc4354_sticky" not in ok(
        alice.get(f"/_matrix/client/v3/rooms/{room_id}/event/{plain}")
    )


@pytest.mark.parametrize("duration", [-1, MAX_STICKY_MS + 1])
def test_durations_are_bounded(alice: User, rooms: Rooms, duration: int) -> None:
    room_id = rooms.create(alice)
    for name in ("sticky_duration_ms", "org.matrix.msc4354.sticky_duration_ms"):
        for path in ("send/m.x/1", "state/m.x/1"):
            answer = alice.put(f"/_matrix/client/v3/rooms/{room_id}/{path}?{name}={duration}", {})
            assert refused(answer) == (400, "M_INVALID_PARAM")


def test_a_sticky_event_outside_a_limited_timeline_is_sent_once(
    alice: User, bob: User, rooms: Rooms
) -> None:
    room_id = rooms.create(alice, bob)
    since = sync(bob)["next_batch"]
    event_id = stick(alice, room_id, "laptop")
    for _ in range(3):
        rooms.say(alice, room_id)
    answer = sync(bob, since, SHORT)
    assert event_id not in ids(answer["rooms"]["join"][room_id])
    assert sticky_ids(answer, room_id) == [event_id]
    assert sticky(answer, room_id)[0]["unsigned"][TTL] == 5 * MINUTE
    rooms.say(alice, room_id)
    assert sticky_ids(sync(bob, answer["next_batch"], SHORT), room_id) == []


def test_an_event_in_the_timeline_is_not_sent_again(alice: User, bob: User, rooms: Rooms) -> None:
    room_id = rooms.create(alice, bob)
    since = sync(bob)["next_batch"]
    event_id = stick(alice, room_id, "laptop")
    answer = sync(bob, since)
    assert event_id in ids(answer["rooms"]["join"][room_id])
    assert sticky(answer, room_id) == []
    filtered = sync(bob, since, {"room": {"timeline": {"not_types": ["org.example.*"]}}})
    assert sticky_ids(filtered, room_id) == [event_id]


def test_new_members_get_sticky_events_whatever_the_history_visibility(
    alice: User, bob: User, rooms: Rooms
) -> None:
    room_id = rooms.create(alice)
    rooms.state(alice, room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    since = sync(bob)["next_batch"]
    first, second = stick(alice, room_id, "laptop"), stick(alice, room_id, "phone")
    rooms.join(bob, room_id)
    answer = sync(bob, since)
    assert sticky_ids(answer, room_id) == [first, second]
    assert [event["unsigned"]["membership"] for event in sticky(answer, room_id)] == [
        "leave",
        "leave",
    ]
    assert sticky_ids(sync(bob), room_id) == [first, second]  # also in a new initial sync
    assert "rooms" not in sync(bob, answer["next_batch"])
    assert bob.get(f"/_matrix/client/v3/rooms/{room_id}/event/{first}").status == 404


def test_expired_redacted_and_ignored_ones_are_not_sent(
    server: TestServer, alice: User, bob: User, rooms: Rooms
) -> None:
    room_id = rooms.create(alice)
    stick(alice, room_id, "short", MINUTE)
    gone = stick(alice, room_id, "redacted", 10 * MINUTE)
    kept = stick(alice, room_id, "kept", 10 * MINUTE)
    rooms.redact(alice, room_id, gone)
    server.clock.advance(61)
    rooms.join(bob, room_id)
    assert sticky_ids(sync(bob, filter=SHORT), room_id) == [kept]
    rooms.keep(bob, "m.ignored_user_list", {"ignored_users": {alice.user_id: {}}})
    assert sticky_ids(sync(bob, filter=SHORT), room_id) == []


def test_state_can_be_sticky_again_with_the_same_content(alice: User, rooms: Rooms) -> None:
    room_id = rooms.create(alice)
    path = (
        f"/_matrix/client/v3/rooms/{room_id}/state/org.example.member/a?sticky_duration_ms={MINUTE}"
    )
    first, second = (ok(alice.put(path, {"a": 1}))["event_id"] for _ in range(2))
    assert first != second
    assert sticky_ids(sync(alice, filter={"room": {"timeline": {"limit": 0}}}), room_id) == [
        first,
        second,
    ]


def test_a_delayed_event_is_sticky_once_it_is_sent(
    server: TestServer, alice: User, bob: User, rooms: Rooms
) -> None:
    server.app.calls.delayed_events.start()
    room_id = rooms.create(alice, bob)
    stick(alice, room_id, "leave", 5 * MINUTE, delay_ms=8000)
    since = sync(bob)["next_batch"]
    pending = poll(bob, since)
    server.clock.advance(8)
    for _ in range(3):
        server.clock.advance(0)
    (event,) = pending.answer.json["rooms"]["join"][room_id]["timeline"]["events"]
    assert event["msc4354_sticky"] == {"duration_ms": 5 * MINUTE}


def test_sticky_events_survive_a_restart(
    tmp_path: Path, sqlite_database: Database, rooms: Rooms
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    alice = server.register("alice")
    room_id = rooms.create(alice)
    event_id = stick(alice, room_id, "laptop")
    rooms.say(alice, room_id)
    later = TestServer(tmp_path, sqlite_database, seed=2, now=1_700_000_100.0)
    answer = sync(move_user(later, alice), filter={"room": {"timeline": {"limit": 1}}})
    assert sticky_ids(answer, room_id) == [event_id]
    assert sticky(answer, room_id)[0]["unsigned"][TTL] == 5 * MINUTE - 100_000


def test_expired_sticky_events_are_deleted(
    server: TestServer, alice: User, rooms: Rooms, sqlite_database: Database
) -> None:
    room_id = rooms.create(alice)
    for number in range(3):
        stick(alice, room_id, str(number), (number + 1) * MINUTE)
    server.clock.advance(121)
    forget = server.app.rooms.sticky_events.do_remove_expired
    assert server.run(forget(1)) == server.run(forget(5)) == 1
    assert server.run(forget(5)) == 0
    assert len(server.run(StickyEventStore(sqlite_database).get_unexpired(0))) == 1


def client_of(user: User, limit: int = 100, **filters: Any) -> SlidingClient:
    wanted = {"enabled": True, "limit": limit}
    return SlidingClient(
        user, lists={"all": a_list([0, 0], **filters)}, extensions={EXTENSION: wanted}
    )


def sticky_by_room(answer: Json) -> dict[str, list[str]]:
    rooms = answer["extensions"][EXTENSION].get("rooms", {})
    return {
        room_id: [event["event_id"] for event in room["events"]] for room_id, room in rooms.items()
    }


def test_sliding_sync_has_sticky_events(
    server: TestServer, alice: User, bob: User, rooms: Rooms
) -> None:
    room_id = rooms.create(alice, bob)
    first, second = stick(alice, room_id, "laptop"), stick(alice, room_id, "phone")
    rooms.create(bob)  # the only one in the window
    client = client_of(bob, limit=1)
    answer = client.sync()
    assert (
        sticky_by_room(answer) == sticky_by_room(client.sync()) == {room_id: [first]}
    )  # not acknowledged: it comes again
    wanted = client.body["extensions"][EXTENSION]
    wanted["since"] = answer["extensions"][EXTENSION]["next_batch"]
    answer = client.sync()
    assert sticky_by_room(answer) == {room_id: [second]}
    wanted["since"] = answer["extensions"][EXTENSION]["next_batch"]
    assert client.sync()["extensions"][EXTENSION] == {}
    pending = client.wait()
    third = stick(alice, room_id, "tablet")
    answer = finish_poll(server, pending)
    assert [third] in sticky_by_room(answer).values() or third in str(answer["rooms"])


def test_sliding_sync_leaves_out_rooms_that_no_list_shows(
    alice: User, bob: User, rooms: Rooms
) -> None:
    room_id = rooms.create(alice, bob)
    event_id = stick(alice, room_id, "laptop")
    rooms.say(alice, room_id)
    assert sticky_by_room(client_of(bob, is_dm=True).sync()) == {}
    assert sticky_by_room(client_of(bob, is_dm=False).sync()) == {room_id: [event_id]}


def test_sliding_sync_sends_all_sticky_events_of_a_joined_room(
    alice: User, bob: User, rooms: Rooms
) -> None:
    room_id, other = rooms.create(alice), rooms.create(alice, bob)
    events = [stick(alice, room_id, str(number)) for number in range(3)]
    client = client_of(bob, limit=1)
    stick(alice, other, "other")
    rooms.say(alice, other)
    wanted = client.body["extensions"][EXTENSION]
    wanted["since"] = client.sync()["extensions"][EXTENSION]["next_batch"]
    rooms.join(bob, room_id)
    assert sticky_by_room(client.sync()) == {room_id: events}


def test_the_feature_is_announced(server: TestServer) -> None:
    assert (
        server.get("/_matrix/client/versions").json["unstable_features"]["org.matrix.msc4354"]
        is True
    )
