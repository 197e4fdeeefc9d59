"""Sliding sync: requests and responses of the accepted text of MSC4186 that differ from those of
released clients."""

from typing import Any

import pytest

from tests.helpers.room_actions import create, say, set_state
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import STABLE, SlidingClient, a_list, act, state_of, texts


class Accepted:
    """A client of the accepted form."""

    def __init__(self, user: User, **body: Any) -> None:
        self.user = user
        self.body = body

    def sync(self) -> dict[str, Any]:
        answer = self.user.post(STABLE, self.body)
        assert answer.status == 200, answer.body
        self.body["pos"] = answer.json["pos"]
        rooms: dict[str, Any] = answer.json["rooms"]
        return rooms


def lazily(*include: dict[str, str]) -> dict[str, Any]:
    return {"include": list(include), "lazy_members": True}


def test_complete_state_with_lazy_members_is_returned(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id = create(alice, preset="public_chat", name="tea")
    carol, dave = server.register("carol"), server.register("dave")
    for user in (bob, carol, dave):
        act(user, room_id, "join")
    say(bob, room_id, "hello")

    def members(state: dict[str, Any]) -> set[str]:
        client = Accepted(
            alice, room_subscriptions={room_id: {"timeline_limit": 1, "required_state": state}}
        )
        received = state_of(client.sync()[room_id])
        assert (("m.room.name", "") in received) == (state["include"][0] == {})
        return {key for type, key in received if type == "m.room.member"}

    of_carol = {"type": "m.room.member", "state_key": carol.user_id}
    assert members(lazily({})) == {bob.user_id}
    assert members(lazily({}, of_carol)) == {bob.user_id, carol.user_id}
    assert members(lazily({}, {"state_key": dave.user_id})) == {bob.user_id, dave.user_id}
    assert members(lazily({"type": "m.room.member"})) == {bob.user_id}
    everybody = {user.user_id for user in (alice, bob, carol, dave)}
    assert members({"include": [{}]}) == everybody
    # of two that are wanted of a room the one asks for all
    client = Accepted(
        alice,
        lists={"all": {"timeline_limit": 1, "required_state": lazily({})}},
        room_subscriptions={
            room_id: {
                "timeline_limit": 1,
                "required_state": {"include": [{"type": "m.room.member"}]},
            },
        },
    )
    received = state_of(client.sync()[room_id])
    assert {key for type, key in received if type == "m.room.member"} == everybody


def test_a_room_names_the_lists_that_contain_it(alice: User) -> None:
    listed, subscribed = create(alice, name="tea"), create(alice)
    client = Accepted(
        alice,
        lists={
            "encrypted": {"timeline_limit": 1, "filters": {"is_encrypted": True}},
            "all": {"timeline_limit": 1},
        },
        room_subscriptions={subscribed: {"timeline_limit": 1}},
    )
    assert {room_id: room["lists"] for room_id, room in client.sync().items()} == {
        listed: ["all"],
        subscribed: ["all"],
    }
    del client.body["lists"]
    say(alice, subscribed, "hello")
    assert "lists" not in client.sync()[subscribed]
    say(alice, subscribed, "again")
    assert "lists" not in client.sync()[subscribed]


@pytest.mark.parametrize("by", ["list", "subscription"])
def test_a_withdrawn_invite_is_sent_as_a_leave(alice: User, bob: User, by: str) -> None:
    room_id = create(bob, invite=[alice.user_id], name="tea")
    wanted = {"timeline_limit": 1, "required_state": {"include": [{}]}}
    body: dict[str, Any] = (
        {"lists": {"all": wanted}} if by == "list" else {"room_subscriptions": {room_id: wanted}}
    )
    client = Accepted(alice, **body)
    assert {event["type"] for event in client.sync()[room_id]["stripped_state"]} >= {
        "m.room.create",
        "m.room.member",
    }
    act(alice, room_id, "leave")
    room = client.sync()[room_id]
    assert room["membership"] == "leave"
    (own,) = room["stripped_state"]
    assert (own["state_key"], own["content"]["membership"]) == (alice.user_id, "leave")
    assert "timeline" not in room
    assert "required_state" not in room
    assert client.sync() == {}
    assert Accepted(alice, **{key: body[key] for key in body if key != "pos"}).sync() == {}


def test_released_clients_get_a_withdrawn_invite_in_their_form(alice: User, bob: User) -> None:
    room_id = create(bob, invite=[alice.user_id])
    client = SlidingClient(
        alice, room_subscriptions={room_id: {"timeline_limit": 1, "required_state": []}}
    )
    assert "invite_state" in client.sync()["rooms"][room_id]
    act(bob, room_id, "kick", user_id=alice.user_id)
    room = client.sync()["rooms"][room_id]
    assert [event["content"]["membership"] for event in room["required_state"]] == ["leave"]
    assert "invite_state" not in room
    assert client.sync()["rooms"] == {}


def test_a_larger_request_for_a_room_after_a_kick_returns_nothing_later(
    alice: User, bob: User
) -> None:
    room_id = create(bob, preset="public_chat", name="before")
    act(alice, room_id, "join")
    for text in ("one", "two", "three"):
        say(bob, room_id, text)
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=1)})
    client.sync()
    act(bob, room_id, "kick", user_id=alice.user_id)
    client.sync()
    say(bob, room_id, "SECRET")
    set_state(bob, room_id, "m.room.topic", {"topic": "SECRET"})
    set_state(bob, room_id, "m.room.name", {"name": "SECRET"})
    state = [["m.room.name", ""], ["m.room.topic", ""]]
    client.body["room_subscriptions"] = {room_id: {"timeline_limit": 4, "required_state": state}}
    room = client.sync()["rooms"][room_id]
    assert room["unstable_expanded_timeline"] is True
    assert texts(room) == ["one", "two", "three"]
    assert room["timeline"][-1]["content"]["membership"] == "leave"
    assert [event["content"] for event in room["required_state"]] == [{"name": "before"}]
    assert "initial" not in room
    assert "SECRET" not in str(room)
    assert client.sync()["rooms"] == {}
