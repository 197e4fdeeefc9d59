"""Room previews, and the deprecated endpoints /events and /initialSync. spec: client-server-
api#room-previews"""

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from homeserver.services.sync import initial_sync
from homeserver.services.sync.initial_sync import MAX_EVENTS
from storage.engine.database import Database
from tests.helpers.http import Answer, Pending
from tests.helpers.room_actions import (
    V3,
    all_texts,
    bodies,
    create,
    get_state,
    invite,
    join,
    leave,
    membership,
    messages,
    ok,
    redact,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User

READABLE = {
    "type": "m.room.history_visibility",
    "content": {"history_visibility": "world_readable"},
}


@pytest.fixture
def guest(server: TestServer) -> User:
    return User(server, ok(server.post(f"{V3}/register?kind=guest", {})))


def readable_room(user: User) -> str:
    return create(user, preset="private_chat", initial_state=[READABLE])


def events_path(**query: object) -> str:
    fields = {name.rstrip("_"): value for name, value in query.items() if value is not None}
    return f"{V3}/events?{urlencode(fields)}"


def events(
    user: User, from_: str | None = None, room_id: str | None = None, timeout: int = 0
) -> Any:
    return ok(user.get(events_path(from_=from_, room_id=room_id, timeout=timeout)))


def wait_for_events(user: User, **query: object) -> Pending:
    return user.start("GET", events_path(timeout=30_000, **query))


def look(user: User, room: str, **query: object) -> Any:
    return ok(user.get(room_path(room, "initialSync", **query)))


def types(chunk: list[Any]) -> list[str]:
    return [event["type"] for event in chunk]


def test_anyone_can_preview_a_world_readable_room(alice: User, bob: User, guest: User) -> None:
    room = readable_room(alice)
    for number in range(5):
        say(alice, room, str(number))
    for peeker in (bob, guest):
        answer = look(peeker, room, limit=2)
        assert (answer["room_id"], answer["visibility"]) == (room, "private")
        assert "membership" not in answer
        assert bodies(answer["messages"]["chunk"]) == ["3", "4"]
        earlier = messages(peeker, room, from_=answer["messages"]["start"], limit=2)
        assert bodies(earlier["chunk"]) == ["2", "1"]
        assert {event["type"] for event in answer["state"]} >= {
            "m.room.create",
            "m.room.member",
            "m.room.power_levels",
        }


def test_a_previewing_user_gets_new_events(alice: User, guest: User) -> None:
    room = readable_room(alice)
    token = look(guest, room)["messages"]["end"]
    waiting = wait_for_events(guest, room_id=room, from_=token)
    assert not waiting.done
    say(alice, create(alice), "elsewhere")
    alice.server.clock.advance(1)
    assert not waiting.done
    say(alice, room, "salom")
    alice.server.clock.advance(1)
    answer = ok(waiting.answer)
    assert bodies(answer["chunk"]) == ["salom"]
    assert (answer["start"], answer["chunk"][0]["room_id"]) == (token, room)
    waiting = wait_for_events(guest, room_id=room, from_=answer["end"])
    alice.server.clock.advance(31)
    assert ok(waiting.answer)["chunk"] == []


def test_a_preview_is_refused_once_the_room_is_not_world_readable(alice: User, bob: User) -> None:
    room = readable_room(alice)
    token = look(bob, room)["messages"]["end"]
    waiting = wait_for_events(bob, room_id=room, from_=token)
    set_state(alice, room, "m.room.history_visibility", {"history_visibility": "shared"})
    alice.server.clock.advance(1)
    assert refused(waiting.answer) == (403, "M_FORBIDDEN")
    for path in (
        room_path(room, "initialSync"),
        events_path(room_id=room),
        room_path(room, "messages", dir="b"),
    ):
        assert refused(bob.get(path)) == (403, "M_FORBIDDEN")


def test_a_preview_shows_only_world_readable_events(alice: User, bob: User) -> None:
    room = create(alice, preset="private_chat")
    say(alice, room, "among us")
    set_state(alice, room, "m.room.history_visibility", {"history_visibility": "world_readable"})
    event_id = say(alice, room, "for all")
    assert bodies(look(bob, room)["messages"]["chunk"]) == ["for all"]
    assert all_texts(bob, room) == ["for all"]
    assert get_state(bob, room, "m.room.history_visibility") == {
        "history_visibility": "world_readable"
    }
    assert ok(bob.get(room_path(room, "members")))["chunk"]
    assert bodies(ok(bob.get(room_path(room, "context", event_id)))["events_before"]) == []
    assert refused(bob.get(room_path(room, "joined_members"))) == (403, "M_FORBIDDEN")
    for room_id in (create(alice), "!none:example.org"):
        assert refused(bob.get(room_path(room_id, "initialSync"))) == (403, "M_FORBIDDEN")
        assert refused(bob.get(events_path(room_id=room_id))) == (403, "M_FORBIDDEN")


def test_initial_sync_of_a_room_is_complete_for_members(alice: User, bob: User) -> None:
    room = create(alice, preset="public_chat", visibility="public")
    join(bob, room)
    say(alice, room, "salom")
    ok(bob.put(f"{V3}/user/{quote(bob.user_id)}/rooms/{quote(room)}/tags/u.work", {"order": 0.1}))
    answer = look(bob, room)
    assert (answer["membership"], answer["visibility"]) == ("join", "public")
    assert answer["account_data"] == [
        {"type": "m.tag", "content": {"tags": {"u.work": {"order": 0.1}}}}
    ]
    assert look(bob, room, limit=0)["messages"]["chunk"] == []
    leave(bob, room)
    say(alice, room, "behind his back")
    answer = look(bob, room)
    assert answer["membership"] == "leave"
    assert bodies(answer["messages"]["chunk"]) == ["salom"]


def test_events_returns_new_events_of_all_rooms(alice: User, bob: User) -> None:
    rooms = [create(alice, preset="public_chat") for _ in range(3)]
    for room in rooms[:2]:
        join(bob, room)
    token = events(bob)["end"]
    assert events(bob, token) == {"start": token, "end": token, "chunk": []}
    for number in range(2):
        for room in rooms:
            say(alice, room, f"{number}")
    answer = events(bob, token)
    assert [(event["room_id"], event["content"]["body"]) for event in answer["chunk"]] == [
        (room, body) for body in "01" for room in rooms[:2]
    ]
    assert events(bob, answer["end"])["chunk"] == []


def test_events_returns_invites_joins_and_leaves(alice: User, bob: User) -> None:
    room, private = create(alice, preset="public_chat"), create(alice, preset="private_chat")
    token = events(bob)["end"]
    invite(alice, private, bob)
    answer = events(bob, token)
    assert [(event["state_key"], event["content"]["membership"]) for event in answer["chunk"]] == [
        (bob.user_id, "invite")
    ]
    join(bob, room)
    say(alice, room, "one")
    ok(membership(alice, room, "kick", bob))
    say(alice, room, "two")
    answer = events(bob, answer["end"])
    assert types(answer["chunk"]) == ["m.room.member", "m.room.message", "m.room.member"]
    assert events(bob, answer["end"])["chunk"] == []


def test_events_returns_many_events_in_parts(tmp_path: Path, database: Database) -> None:
    server = TestServer(tmp_path, database)
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(alice, preset="public_chat") for _ in range(3)]
    for room in rooms:
        join(bob, room)
    token = events(bob)["end"]
    said = [str(number) for number in range(2 * MAX_EVENTS + 30)]
    for number, text in enumerate(said):
        say(alice, rooms[number % 3 if number > 120 else 0], text)
    seen: list[str] = []
    sizes = []
    while True:
        answer = events(bob, token)
        if not answer["chunk"]:
            break
        sizes.append(len(answer["chunk"]))
        seen += bodies(answer["chunk"])
        token = answer["end"]
    assert (seen, sizes) == (said, [MAX_EVENTS, MAX_EVENTS, 30])


def test_receipts_and_typing_are_sent(alice: User, bob: User) -> None:
    room = create(alice, preset="public_chat")
    join(bob, room)
    event_id = say(alice, room, "salom")
    token = events(alice)["end"]
    waiting = wait_for_events(alice, from_=token)
    ok(bob.put(room_path(room, "typing", bob.user_id), {"typing": True, "timeout": 5000}))
    alice.server.clock.advance(1)
    answer = ok(waiting.answer)
    assert answer["chunk"] == [
        {"type": "m.typing", "room_id": room, "content": {"user_ids": [bob.user_id]}}
    ]
    ok(bob.post(room_path(room, "receipt", "m.read.private", event_id)))
    assert events(alice, answer["end"])["chunk"] == []
    ok(bob.post(room_path(room, "receipt", "m.read", event_id)))
    (receipt,) = events(alice, answer["end"])["chunk"]
    assert (receipt["type"], receipt["room_id"]) == ("m.receipt", room)
    assert list(receipt["content"][event_id]["m.read"]) == [bob.user_id]


def test_presence_is_sent(tmp_path: Path, sqlite_database: Database) -> None:
    limits = "rc_presence: {per_user: {per_second: 10000, burst_count: 10000}}\n"
    server = TestServer(tmp_path, sqlite_database, "presence: {enabled: true}\n" + limits)
    alice, bob = server.register("alice"), server.register("bob")
    room = create(alice, preset="public_chat")
    join(bob, room)
    token = events(alice)["end"]
    waiting = wait_for_events(alice, from_=token)
    ok(
        bob.put(
            f"{V3}/presence/{bob.user_id}/status", {"presence": "online", "status_msg": "at tea"}
        )
    )
    for _ in range(5):
        server.clock.advance(0)
    (event,) = ok(waiting.answer)["chunk"]
    assert (event["type"], event["sender"], event["content"]["status_msg"]) == (
        "m.presence",
        bob.user_id,
        "at tea",
    )
    assert [each["sender"] for each in ok(alice.get(f"{V3}/initialSync"))["presence"]] == [
        bob.user_id
    ]
    assert ok(waiting.answer)["end"] != token


def test_initial_sync_returns_all_rooms(alice: User, bob: User) -> None:
    joined, left, private, declined = [create(alice, preset="public_chat") for _ in range(4)]
    for room in (joined, left):
        join(bob, room)
        say(alice, room, "salom")
    leave(bob, left)
    for room in (private, declined):
        invite(alice, room, bob)
    leave(bob, declined)
    ok(bob.put(f"{V3}/user/{quote(bob.user_id)}/account_data/org.example.x", {"a": 1}))
    answer = ok(bob.get(f"{V3}/initialSync?limit=1"))
    by_id = {room["room_id"]: room for room in answer["rooms"]}
    assert set(by_id) == {joined, private}
    assert by_id[private]["membership"] == "invite"
    assert by_id[private]["invite"]["content"]["membership"] == "invite"
    assert bodies(by_id[joined]["messages"]["chunk"]) == ["salom"]
    assert {"type": "org.example.x", "content": {"a": 1}} in answer["account_data"]
    say(alice, joined, "after")
    assert bodies(events(bob, answer["end"])["chunk"]) == ["after"]
    archived = ok(bob.get(f"{V3}/initialSync?limit=1&archived=true"))["rooms"]
    assert {(room["room_id"], room["membership"]) for room in archived} == {
        (joined, "join"),
        (private, "invite"),
        (left, "leave"),
    }
    ok(membership(bob, left, "forget"))
    archived = ok(bob.get(f"{V3}/initialSync?limit=1&archived=true"))["rooms"]
    assert left not in {room["room_id"] for room in archived}


def test_the_number_of_rooms_in_initial_sync_is_limited(
    alice: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = [create(alice, preset="public_chat") for _ in range(4)]
    for room in rooms[:3]:
        join(bob, room)
    invite(alice, rooms[3], bob)
    say(alice, rooms[0], "news")

    def received() -> list[str]:
        return [room["room_id"] for room in ok(bob.get(f"{V3}/initialSync?limit=1"))["rooms"]]

    assert received() == [rooms[3], rooms[0], rooms[2], rooms[1]]
    monkeypatch.setattr(initial_sync, "MAX_ROOMS", 3)
    assert received() == [rooms[3], rooms[0], rooms[2]]
    monkeypatch.setattr(initial_sync, "MAX_STATE_BYTES", 1000)
    assert received() == [rooms[3], rooms[0]], "there is one at least, however large"


def test_an_event_is_read_by_its_id_alone(alice: User, bob: User) -> None:
    room = create(alice, preset="private_chat")
    event_id = say(alice, room, "salom")
    path = f"{V3}/events/{quote(event_id)}"
    event = ok(alice.get(path))
    assert (event["event_id"], event["room_id"], event["content"]["body"]) == (
        event_id,
        room,
        "salom",
    )
    assert refused(bob.get(path)) == (404, "M_NOT_FOUND")
    assert refused(bob.get(f"{V3}/events/{quote('$none')}")) == (404, "M_NOT_FOUND")
    ok(redact(alice, room, event_id))
    assert ok(alice.get(path))["content"] == {}


def test_guests_can_only_preview_rooms(guest: User) -> None:
    for path in (f"{V3}/initialSync", f"{V3}/events/$x"):
        assert refused(guest.get(path)) == (403, "M_GUEST_ACCESS_FORBIDDEN")
    assert events(guest)["chunk"] == []


@pytest.mark.parametrize("query", ["from=nonsense", "timeout=soon", "room_id=nothing"])
def test_invalid_requests_are_refused(alice: User, query: str) -> None:
    answer: Answer = alice.get(f"{V3}/events?{query}")
    assert refused(answer) == (400, "M_INVALID_PARAM")


def test_a_token_from_the_future_counts_as_now(alice: User) -> None:
    room = create(alice)
    answer = events(alice, "s999999_5")
    assert answer["chunk"] == []
    say(alice, room, "salom")
    assert bodies(events(alice, answer["end"])["chunk"]) == ["salom"]
