"""Rooms with plain messages take the short way of both kinds of sync, and no others do.

`compared` makes each such response in the full way too, and compares.
"""

from collections.abc import Callable
from typing import Any

import pytest

from homeserver.services.streams.recent_changes import NEWEST_CHECKED
from homeserver.services.sync import device_sections
from tests.helpers.room_actions import create, say, set_state
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import STABLE, SlidingClient, a_list, act, texts
from tests.helpers.sync_comparison import Compared
from tests.helpers.sync_requests import bodies, sync

EXTENSIONS = {
    name: {"enabled": True} for name in ("to_device", "e2ee", "account_data", "receipts", "typing")
}
LAZILY = {"room": {"timeline": {"limit": 5}, "state": {"lazy_load_members": True}}}

Scenario = tuple[User, User, list[str]]


@pytest.fixture
def scenario(server: TestServer) -> Scenario:
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


MORE: dict[str, Callable[[User, User, str], object]] = {
    "state": lambda _alice, bob, room: set_state(bob, room, "m.room.topic", {"topic": "new"}),
    "membership": lambda _alice, bob, room: act(bob, room, "leave"),
    "receipt": lambda _alice, bob, room: _receipt(bob, room),
    "own account data": lambda alice, _bob, _room: _account_data(alice),
    "typing": lambda _alice, bob, room: _type(bob, room),
    "message to the device": lambda alice, bob, _room: _send_to(bob, alice),
}
"""News beside messages."""


def test_plain_messages_take_the_fast_path(scenario: Scenario, compared: Compared) -> None:
    alice, bob, rooms = scenario
    since = sync(alice)["next_batch"]
    since = sync(alice, since)["next_batch"]
    _account_data(bob)  # news for others alone
    say(bob, rooms[0], "one")
    say(bob, rooms[2], "two")
    before = len(compared)
    answer = sync(alice, since)
    assert len(compared) == before + 1
    assert {room_id: bodies(room) for room_id, room in answer["rooms"]["join"].items()} == {
        rooms[0]: ["one"],
        rooms[2]: ["two"],
    }


def test_none_of_many_changes_since_the_token_is_omitted(
    scenario: Scenario, compared: Compared
) -> None:
    """The last few are looked at first."""
    alice, bob, rooms = scenario
    since = sync(alice, sync(alice)["next_batch"])["next_batch"]
    tokens, said = [since], [(rooms[0], "first")]
    say(bob, *said[0])
    for number in range(2 * NEWEST_CHECKED):
        tokens.append(sync(alice, tokens[-1])["next_batch"])
        said.append((rooms[1 + number % 2], f"more-{number}"))
        say(bob, *said[-1])
    before = len(compared)
    wanted = {"room": {"timeline": {"limit": 50}}}
    for at, token in enumerate(tokens):
        received = sync(alice, token, wanted)["rooms"]["join"]
        assert {room_id: bodies(room) for room_id, room in received.items()} == {
            room_id: [text for where, text in said[at:] if where == room_id]
            for room_id, _ in said[at:]
        }
    assert len(compared) == before + len(tokens)


@pytest.mark.parametrize("what", MORE)
def test_other_changes_do_not_prevent_the_fast_path_of_a_room(
    scenario: Scenario, compared: Compared, what: str
) -> None:
    alice, bob, rooms = scenario
    since = sync(alice, sync(alice)["next_batch"])["next_batch"]
    say(bob, rooms[0], "one")
    MORE[what](alice, bob, rooms[1])
    before = len(compared)
    assert bodies(sync(alice, since)["rooms"]["join"][rooms[0]]) == ["one"]
    assert len(compared) == before + 1


def _ignore(user: User, other: User) -> None:
    path = f"/_matrix/client/v3/user/{user.user_id}/account_data/m.ignored_user_list"
    assert user.put(path, {"ignored_users": {other.user_id: {}}}).status == 200


def _rejoin(user: User, room_id: str) -> None:
    act(user, room_id, "leave")
    act(user, room_id, "join")


def _redact(user: User, room_id: str, event_id: str) -> None:
    assert user.put(f"/_matrix/client/v3/rooms/{room_id}/redact/{event_id}/1", {}).status == 200


NOT_PLAIN: dict[str, Callable[[User, User, str], object]] = {
    "state": lambda _alice, bob, room: set_state(bob, room, "m.room.topic", {"topic": "new"}),
    "membership": lambda alice, _bob, room: _rejoin(alice, room),
    "redacted": lambda _alice, bob, room: _redact(bob, room, say(bob, room, "oops")),
    "ignored": lambda alice, bob, _room: _ignore(alice, bob),
    "too many": lambda _alice, bob, room: [say(bob, room, f"{number}") for number in range(11)],
}
"""Changes that take a message out of the short way."""


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_a_message_that_is_not_plain_takes_the_complete_path(
    scenario: Scenario, compared: Compared, what: str
) -> None:
    alice, bob, rooms = scenario
    since = sync(alice, sync(alice)["next_batch"])["next_batch"]
    say(bob, rooms[0], "one")
    NOT_PLAIN[what](alice, bob, rooms[0])
    before = len(compared)
    sync(alice, since)
    assert len(compared) == before


def test_an_unsent_lazy_loaded_sender_takes_the_complete_path(
    scenario: Scenario, compared: Compared
) -> None:
    alice, bob, rooms = scenario
    carol = alice.server.register("carol")
    act(carol, rooms[0], "join")
    for number in range(6):
        say(bob, rooms[0], f"{number}")
    since = sync(alice, filter=LAZILY)["next_batch"]
    since = sync(alice, since, LAZILY)["next_batch"]
    before = len(compared)
    say(carol, rooms[0], "hello")
    answer = sync(alice, since, LAZILY)
    state = answer["rooms"]["join"][rooms[0]]["state"]["events"]
    assert [event["state_key"] for event in state] == [carol.user_id]
    assert len(compared) == before
    say(carol, rooms[0], "again")
    sync(alice, answer["next_batch"], LAZILY)
    assert len(compared) == before + 1


@pytest.mark.parametrize("with_message", [False, True])
@pytest.mark.usefixtures("compared")
def test_to_device_messages_repeat_until_acknowledged(
    scenario: Scenario, with_message: bool
) -> None:
    alice, bob, rooms = scenario
    since = sync(alice, sync(alice)["next_batch"])["next_batch"]
    for number in (1, 2):
        _send_to(bob, alice, number)
        if with_message:
            say(bob, rooms[0], f"say-{number}")
    answer = sync(alice, since)
    assert [event["content"]["n"] for event in answer["to_device"]["events"]] == [1, 2]
    if with_message:
        assert bodies(answer["rooms"]["join"][rooms[0]]) == ["say-1", "say-2"]
    assert sync(alice, since)["to_device"] == answer["to_device"], (
        "until it comes back with the token of the answer"
    )
    _send_to(bob, alice, 3)
    later = sync(alice, answer["next_batch"])
    assert [event["content"]["n"] for event in later["to_device"]["events"]] == [3]
    assert sync(alice, later["next_batch"])["to_device"]["events"] == []


@pytest.mark.usefixtures("compared")
def test_more_to_device_messages_than_fit_come_in_order(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, _ = scenario
    monkeypatch.setattr(device_sections, "MESSAGES_PER_RESPONSE", 2)
    since = sync(alice, sync(alice)["next_batch"])["next_batch"]
    for number in range(5):
        _send_to(bob, alice, number)
    sent: list[int] = []
    for _ in range(3):
        answer = sync(alice, since)
        sent += [event["content"]["n"] for event in answer["to_device"]["events"]]
        since = answer["next_batch"]
    assert sent == [0, 1, 2, 3, 4]


def _follow(user: User, last: int, **lists: Any) -> SlidingClient:
    wanted = a_list([0, last], limit=5, state=[["m.room.member", "$LAZY"], ["m.room.name", ""]])
    client = SlidingClient(user, lists={"all": wanted, **lists}, extensions=EXTENSIONS)
    client.sync()
    client.sync()
    return client


def test_plain_messages_in_view_take_the_fast_path(scenario: Scenario, compared: Compared) -> None:
    alice, bob, rooms = scenario
    client = _follow(alice, 9)
    for turn in ("one", "two"):
        say(bob, rooms[0], f"{turn}-here")
        say(bob, rooms[1], f"{turn}-there")
        before = len(compared)
        received = client.sync()["rooms"]
        assert len(compared) == before + 1
        assert {room_id: texts(room) for room_id, room in received.items()} == {
            rooms[0]: [f"{turn}-here"],
            rooms[1]: [f"{turn}-there"],
        }
        client.sync()


def test_consecutive_messages_take_the_fast_path(scenario: Scenario, compared: Compared) -> None:
    alice, bob, rooms = scenario
    client = _follow(alice, 9)
    before = len(compared)
    for number in range(4):
        say(bob, rooms[0], f"{number}")
        assert {room_id: texts(room) for room_id, room in client.sync()["rooms"].items()} == {
            rooms[0]: [f"{number}"]
        }
    assert len(compared) == before + 4


def test_a_room_that_comes_into_view_takes_the_complete_path_first(
    scenario: Scenario, compared: Compared
) -> None:
    alice, bob, rooms = scenario
    client = _follow(alice, 1)
    before = len(compared)
    say(bob, rooms[0], "one")
    brought = client.sync()["rooms"]
    assert list(brought) == [rooms[0]]
    assert brought[rooms[0]]["initial"] is True
    assert texts(brought[rooms[0]])[-1] == "one"
    assert len(compared) == before
    say(bob, rooms[0], "two")
    assert texts(client.sync()["rooms"][rooms[0]]) == ["two"]
    assert len(compared) == before + 1


def test_a_room_with_too_short_a_timeline_takes_the_complete_path_first(
    scenario: Scenario, compared: Compared
) -> None:
    alice, bob, rooms = scenario
    client = _follow(alice, 9, first=a_list([0, 0], limit=7))
    before = len(compared)
    say(bob, rooms[0], "one")  # it moves into the window that asks for more
    assert texts(client.sync()["rooms"][rooms[0]])[-1] == "one"
    assert len(compared) == before
    say(bob, rooms[0], "two")
    assert texts(client.sync()["rooms"][rooms[0]]) == ["two"]
    assert len(compared) == before + 1


@pytest.mark.parametrize("what", MORE)
def test_other_changes_in_view_do_not_prevent_the_fast_path(
    scenario: Scenario, compared: Compared, what: str
) -> None:
    alice, bob, rooms = scenario
    client = _follow(alice, 9)
    say(bob, rooms[0], "one")
    MORE[what](alice, bob, rooms[1])
    before = len(compared)
    assert texts(client.sync()["rooms"][rooms[0]]) == ["one"]
    assert len(compared) == before + 1


def test_a_client_that_requests_more_takes_the_complete_path(
    scenario: Scenario, compared: Compared
) -> None:
    alice, bob, rooms = scenario
    client = _follow(alice, 9)
    say(bob, rooms[0], "one")
    client.body["lists"]["all"] = a_list([0, 9], limit=6, state=[["m.room.topic", ""]])
    before = len(compared)
    client.sync()
    assert len(compared) == before


@pytest.mark.usefixtures("compared")
def test_a_lost_response_is_repeated(scenario: Scenario) -> None:
    alice, bob, rooms = scenario
    client = _follow(alice, 9)
    pos = client.pos
    say(bob, rooms[0], "one")
    first = client.sync()
    client.pos = pos
    repeated = client.sync()
    assert texts(repeated["rooms"][rooms[0]]) == texts(first["rooms"][rooms[0]]) == ["one"]


@pytest.mark.usefixtures("compared")
def test_a_declined_invite_is_sent_once(server: TestServer) -> None:
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
    received = ask(pos)
    assert received["rooms"][room_id]["membership"] == "leave"
    assert ask(received["pos"])["rooms"] == {}
