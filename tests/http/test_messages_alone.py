"""Where messages alone are new, answers are made in a shorter way: that it is taken where it may
be, and nowhere else. Each answer that is made so is compared with that of the longer way
(`compared`)."""

from collections.abc import Callable
from typing import Any

import pytest

from homeserver.services.streams.recent_changes import LAST_FEW
from homeserver.services.sync import devices
from homeserver.services.sync.sync import Sync
from tests.helpers.server import TestServer, User
from tests.helpers.syncing import bodies, sync
from tests.http.sliding import STABLE, SlidingClient, a_list, act, create, put_state, say, texts

EXTENSIONS = {
    name: {"enabled": True} for name in ("to_device", "e2ee", "account_data", "receipts", "typing")
}
LAZILY = {"room": {"timeline": {"limit": 5}, "state": {"lazy_load_members": True}}}

Town = tuple[User, User, list[str]]


@pytest.fixture
def town(server: TestServer) -> Town:
    """Alice and Bob, in three rooms, the last one the newest."""
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(bob, preset="public_chat", name=f"room {number}") for number in range(3)]
    for room_id in rooms:
        act(alice, room_id, "join")
    return alice, bob, rooms


def _receipt(user: User, room_id: str) -> None:
    event_id = say(user, room_id, "read")
    assert user.post(f"/_matrix/client/v3/rooms/{room_id}/receipt/m.read/{event_id}").status == 200


def _account_data(user: User) -> None:
    path = f"/_matrix/client/v3/user/{user.user_id}/account_data/org.example"
    assert user.put(path, {"some": "thing"}).status == 200


def _type(user: User, room_id: str) -> None:
    body = {"typing": True, "timeout": 1000}
    assert user.put(f"/_matrix/client/v3/rooms/{room_id}/typing/{user.user_id}", body).status == 200


def _send_to(user: User, other: User, number: int = 1) -> None:
    body = {"messages": {other.user_id: {other.device_id: {"n": number}}}}
    assert user.put(f"/_matrix/client/v3/sendToDevice/org.example/{number}", body).status == 200


TO_DEVICE = "message to the device"
MORE: dict[str, Callable[[User, User, str], None]] = {
    "state": lambda _alice, bob, room: put_state(bob, room, "m.room.topic", {"topic": "new"}),
    "membership": lambda _alice, bob, room: act(bob, room, "leave"),
    "receipt": lambda _alice, bob, room: _receipt(bob, room),
    "own account data": lambda alice, _bob, _room: _account_data(alice),
    "typing": lambda _alice, bob, room: _type(bob, room),
    TO_DEVICE: lambda alice, bob, _room: _send_to(bob, alice),
}
"""What a client has to be told of beside messages."""


def test_messages_are_told_in_the_shorter_way(town: Town, compared: list[object]) -> None:
    alice, bob, rooms = town
    since = sync(alice)["next_batch"]
    since = sync(alice, since)["next_batch"]
    _account_data(bob)  # what others alone are told of does not matter
    say(bob, rooms[0], "one")
    say(bob, rooms[2], "two")
    before = len(compared)
    answer = sync(alice, since)
    assert len(compared) == before + 1
    assert {room_id: bodies(room) for room_id, room in answer["rooms"]["join"].items()} == {
        rooms[0]: ["one"],
        rooms[2]: ["two"],
    }


def test_of_many_changes_since_the_token_none_is_left_out(
    town: Town, compared: list[object]
) -> None:
    """The last few are looked at first."""
    alice, bob, rooms = town
    since = sync(alice, sync(alice)["next_batch"])["next_batch"]
    tokens, said = [since], [(rooms[0], "first")]
    say(bob, *said[0])
    for number in range(2 * LAST_FEW):
        tokens.append(sync(alice, tokens[-1])["next_batch"])
        said.append((rooms[1 + number % 2], f"more-{number}"))
        say(bob, *said[-1])
    before = len(compared)
    wanted = {"room": {"timeline": {"limit": 50}}}
    for at, token in enumerate(tokens):
        told = sync(alice, token, wanted)["rooms"]["join"]
        assert {room_id: bodies(room) for room_id, room in told.items()} == {
            room_id: [text for where, text in said[at:] if where == room_id]
            for room_id, _ in said[at:]
        }
    assert len(compared) == before + len(tokens)


@pytest.mark.parametrize("wanted", [None, LAZILY])
def test_the_usual_answer_is_there_at_once(
    town: Town,
    compared: list[object],
    monkeypatch: pytest.MonkeyPatch,
    wanted: dict[str, Any] | None,
) -> None:
    """Nothing is waited for, also where nothing is new."""
    alice, bob, rooms = town
    since = sync(alice, filter=wanted)["next_batch"]
    since = sync(alice, since, wanted)["next_batch"]
    say(bob, rooms[0], "one")
    before = len(compared)
    monkeypatch.setattr(Sync, "_answer", None)  # all other ways
    answer = sync(alice, since, wanted)
    quiet = sync(alice, answer["next_batch"], wanted)
    assert bodies(answer["rooms"]["join"][rooms[0]]) == ["one"]
    assert "rooms" not in quiet
    assert len(compared) == before + 2


@pytest.mark.parametrize("what", sorted(MORE.keys() - {TO_DEVICE}))
def test_what_else_is_new_takes_the_longer_way(
    town: Town, compared: list[object], what: str
) -> None:
    alice, bob, rooms = town
    since = sync(alice)["next_batch"]
    since = sync(alice, since)["next_batch"]
    say(bob, rooms[0], "one")
    MORE[what](alice, bob, rooms[1])
    before = len(compared)
    sync(alice, since)
    assert len(compared) == before


@pytest.mark.parametrize("beside", [False, True])
def test_messages_to_the_device_are_told_in_the_shorter_way(
    town: Town, compared: list[object], beside: bool
) -> None:
    alice, bob, rooms = town
    since = sync(alice, sync(alice)["next_batch"])["next_batch"]
    for number in (1, 2):
        _send_to(bob, alice, number)
        if beside:
            say(bob, rooms[0], f"say-{number}")
    before = len(compared)
    answer = sync(alice, since)
    assert len(compared) == before + 1
    assert [event["content"]["n"] for event in answer["to_device"]["events"]] == [1, 2]
    if beside:
        assert bodies(answer["rooms"]["join"][rooms[0]]) == ["say-1", "say-2"]
    assert sync(alice, since)["to_device"] == answer["to_device"], (
        "until it comes back with the token of the answer"
    )
    _send_to(bob, alice, 3)
    later = sync(alice, answer["next_batch"])
    assert [event["content"]["n"] for event in later["to_device"]["events"]] == [3]
    assert sync(alice, later["next_batch"])["to_device"]["events"] == []


def test_more_messages_to_the_device_than_an_answer_takes_are_told_in_the_longer_way(
    town: Town, compared: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, _ = town
    monkeypatch.setattr(devices, "MESSAGES_AN_ANSWER", 2)
    since = sync(alice, sync(alice)["next_batch"])["next_batch"]
    for number in range(5):
        _send_to(bob, alice, number)
    before = len(compared)
    told: list[int] = []
    for _ in range(3):
        answer = sync(alice, since)
        told += [event["content"]["n"] for event in answer["to_device"]["events"]]
        since = answer["next_batch"]
    assert told == [0, 1, 2, 3, 4]
    assert len(compared) == before + 1, "the last one"


def _follow(user: User, last: int, **lists: Any) -> SlidingClient:
    wanted = a_list([0, last], limit=5, state=[["m.room.member", "$LAZY"], ["m.room.name", ""]])
    client = SlidingClient(user, lists={"all": wanted, **lists}, extensions=EXTENSIONS)
    client.sync()
    client.sync()
    return client


def test_messages_in_view_are_told_in_the_shorter_way(town: Town, compared: list[object]) -> None:
    alice, bob, rooms = town
    client = _follow(alice, 9)
    for turn in ("one", "two"):
        say(bob, rooms[0], f"{turn}-here")
        say(bob, rooms[1], f"{turn}-there")
        before = len(compared)
        told = client.sync()["rooms"]
        assert len(compared) == before + 1
        assert {room_id: texts(room) for room_id, room in told.items()} == {
            rooms[0]: [f"{turn}-here"],
            rooms[1]: [f"{turn}-there"],
        }
        client.sync()


def test_one_message_after_the_other_is_told_in_the_shorter_way(
    town: Town, compared: list[object]
) -> None:
    """What the client looks at is known from each answer to the next."""
    alice, bob, rooms = town
    client = _follow(alice, 9)
    before = len(compared)
    for number in range(4):
        say(bob, rooms[0], f"{number}")
        assert {room_id: texts(room) for room_id, room in client.sync()["rooms"].items()} == {
            rooms[0]: [f"{number}"]
        }
    assert len(compared) == before + 4


def test_a_message_that_brings_a_room_into_view_takes_the_shorter_way(
    town: Town, compared: list[object]
) -> None:
    alice, bob, rooms = town
    client = _follow(alice, 1)
    before = len(compared)
    say(bob, rooms[0], "one")
    brought = client.sync()["rooms"]
    assert list(brought) == [rooms[0]]
    assert brought[rooms[0]]["initial"] is True
    assert texts(brought[rooms[0]])[-1] == "one"
    assert len(compared) == before + 1
    say(bob, rooms[0], "two")
    assert texts(client.sync()["rooms"][rooms[0]]) == ["two"]
    assert len(compared) == before + 2


def test_a_room_that_is_in_one_window_alone_takes_the_longer_way(
    town: Town, compared: list[object]
) -> None:
    alice, bob, rooms = town
    client = _follow(alice, 9, first=a_list([0, 0], limit=7))
    before = len(compared)
    say(bob, rooms[0], "one")
    assert texts(client.sync()["rooms"][rooms[0]])[-1] == "one"
    assert len(compared) == before
    say(bob, rooms[0], "two")
    assert texts(client.sync()["rooms"][rooms[0]]) == ["two"]
    assert len(compared) == before + 1


@pytest.mark.parametrize("what", MORE)
def test_what_else_is_new_in_view_takes_the_longer_way(
    town: Town, compared: list[object], what: str
) -> None:
    alice, bob, rooms = town
    client = _follow(alice, 9)
    say(bob, rooms[0], "one")
    MORE[what](alice, bob, rooms[1])
    before = len(compared)
    client.sync()
    assert len(compared) == before


def test_who_asks_for_something_else_takes_the_longer_way(
    town: Town, compared: list[object]
) -> None:
    alice, bob, rooms = town
    client = _follow(alice, 9)
    say(bob, rooms[0], "one")
    client.body["lists"]["all"] = a_list([0, 9], limit=6, state=[["m.room.topic", ""]])
    before = len(compared)
    client.sync()
    assert len(compared) == before


@pytest.mark.usefixtures("compared")
def test_an_answer_that_was_lost_is_made_again(town: Town) -> None:
    alice, bob, rooms = town
    client = _follow(alice, 9)
    pos = client.pos
    say(bob, rooms[0], "one")
    first = client.sync()
    client.pos = pos
    again = client.sync()
    assert texts(again["rooms"][rooms[0]]) == texts(first["rooms"][rooms[0]]) == ["one"]


@pytest.mark.usefixtures("compared")
def test_an_invite_that_was_declined_is_told_once_and_then_in_no_view(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(bob, preset="private_chat", invite=[alice.user_id])
    body = {
        "room_subscriptions": {room_id: {"timeline_limit": 1, "required_state": {"include": []}}}
    }

    def ask(pos: str | None) -> Any:
        answer = alice.post(STABLE, body if pos is None else {**body, "pos": pos})
        assert answer.status == 200, answer.body
        return answer.json

    pos = ask(ask(None)["pos"])["pos"]
    act(alice, room_id, "leave")
    told = ask(pos)
    assert told["rooms"][room_id]["membership"] == "leave"
    assert ask(told["pos"])["rooms"] == {}
