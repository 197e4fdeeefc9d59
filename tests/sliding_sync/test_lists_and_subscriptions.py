"""Sliding sync: the rooms in lists and subscriptions, as members join and leave."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.room_actions import create, ok, put_event, redact, say, set_state
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list, act, state_of, texts

pytestmark = pytest.mark.usefixtures("compared")

ME = [["m.room.member", "$ME"]]


def shown(user: User, **filters: Any) -> set[str]:
    """The rooms that a list with these filters shows."""
    answer = SlidingClient(user, "filters", lists={"a": a_list([0, 99], **filters)}).sync()
    assert answer["lists"]["a"]["count"] == len(answer["rooms"])
    return set(answer["rooms"])


def test_an_invite_is_sent_with_stripped_state(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(bob, name="tea", invite=[alice.user_id])
    client = SlidingClient(alice, lists={"all": a_list([0, 9], state=[["*", "*"]])})
    room = client.sync()["rooms"][room_id]
    assert room["initial"] is True
    assert room["bump_stamp"] > 0
    assert not {"timeline", "required_state", "name", "joined_count"} & room.keys()
    stripped = {
        (event["type"], event["state_key"]): event["content"] for event in room["invite_state"]
    }
    assert stripped["m.room.name", ""] == {"name": "tea"}
    assert stripped["m.room.member", alice.user_id]["membership"] == "invite"
    assert client.sync()["rooms"] == {}
    act(alice, room_id, "join")
    room = client.sync()["rooms"][room_id]
    assert room["initial"] is True
    assert room["name"] == "tea"
    assert "invite_state" not in room


def test_a_rejected_invite_is_sent_once(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(bob, invite=[alice.user_id])
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    client.sync()
    act(alice, room_id, "leave")
    room = client.sync()["rooms"][room_id]
    assert [event["content"]["membership"] for event in room["required_state"]] == ["leave"]
    assert not {"invite_state", "timeline"} & room.keys()
    answer = client.sync()
    assert answer["rooms"] == {}
    assert answer["lists"]["all"]["count"] == 0


def test_a_retracted_invite_is_sent_once(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(bob, invite=[alice.user_id])
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    client.sync()
    act(bob, room_id, "kick", user_id=alice.user_id)
    assert state_of(client.sync()["rooms"][room_id]) == {("m.room.member", alice.user_id)}
    assert client.sync()["lists"]["all"]["count"] == 0
    assert shown(alice) == set()


def test_invites_of_ignored_users_are_not_sent(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(bob, invite=[alice.user_id])
    assert shown(alice) == {room_id}
    path = f"/_matrix/client/v3/user/{alice.user_id}/account_data/m.ignored_user_list"
    assert alice.put(path, {"ignored_users": {bob.user_id: {}}}).status == 200
    assert shown(alice) == set()


def test_an_accepted_knock_is_sent_as_an_invite(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(
        bob,
        initial_state=[
            {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
        ],
    )
    assert alice.post(f"/_matrix/client/v3/knock/{room_id}").status == 200
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    room = client.sync()["rooms"][room_id]
    own = [event for event in room["invite_state"] if event["state_key"] == alice.user_id]
    assert own[0]["content"]["membership"] == "knock"
    act(bob, room_id, "invite", user_id=alice.user_id)
    room = client.sync()["rooms"][room_id]
    own = [event for event in room["invite_state"] if event["state_key"] == alice.user_id]
    assert own[0]["content"]["membership"] == "invite"
    act(alice, room_id, "join")
    assert client.sync()["rooms"][room_id]["initial"] is True


@pytest.mark.parametrize("action", ["kick", "ban"])
def test_a_kicked_user_sees_the_kick_and_nothing_later(server: TestServer, action: str) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(bob, preset="public_chat")
    act(alice, room_id, "join")
    client = SlidingClient(
        alice, lists={"all": a_list([0, 9], limit=9, state=[*ME, ["m.room.topic", ""]])}
    )
    client.sync()
    say(bob, room_id, "before")
    act(bob, room_id, action, user_id=alice.user_id)
    set_state(bob, room_id, "m.room.topic", {"topic": "secret"})
    say(bob, room_id, "after")
    room = client.sync()["rooms"][room_id]
    assert texts(room) == ["before"]
    assert room["timeline"][-1]["content"]["membership"] == ("leave" if action == "kick" else "ban")
    assert state_of(room) == {("m.room.member", alice.user_id)}
    say(bob, room_id, "later")
    answer = client.sync()
    assert answer["rooms"] == {}
    assert answer["lists"]["all"]["count"] == 1
    fresh = SlidingClient(alice, "fresh", lists={"all": a_list([0, 9], limit=2)}).sync()["rooms"][
        room_id
    ]
    assert texts(fresh) == ["before"]
    if action == "kick":
        act(alice, room_id, "join")
        assert client.sync()["rooms"][room_id]["initial"] is True


@pytest.mark.parametrize("received", ["nothing", "the rest", "the leaving"])
@pytest.mark.parametrize("forgets", [False, True])
def test_a_rejoined_room_is_sent_again_completely(
    server: TestServer, *, forgets: bool, received: str
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id, other = create(alice, preset="public_chat"), create(bob)
    act(bob, room_id, "join")
    extensions = {name: {"enabled": True} for name in ("account_data", "receipts", "typing")}
    client = SlidingClient(
        bob, lists={"all": a_list([0, 9], limit=5, state=[["*", "*"]])}, extensions=extensions
    )
    client.sync()
    assert (
        bob.put(
            f"/_matrix/client/v3/user/{bob.user_id}/rooms/{room_id}/account_data/a.b", {"n": 1}
        ).status
        == 200
    )
    client.sync()
    act(bob, room_id, "leave")
    if received == "the leaving":
        assert room_id in client.sync()["rooms"]
    if forgets:
        act(bob, room_id, "forget")
    if received == "the rest":
        say(bob, other, "hello")
        client.sync()
    set_state(alice, room_id, "m.room.topic", {"topic": "missed"})
    act(bob, room_id, "join")
    answer = client.sync()
    room = answer["rooms"][room_id]
    assert room["initial"] is True
    assert {("m.room.create", ""), ("m.room.topic", "")} <= state_of(room)
    assert answer["extensions"]["account_data"]["rooms"] == {
        room_id: [{"type": "a.b", "content": {"n": 1}}]
    }
    for name in ("Bob", "Bobby"):  # a new name is no new joining
        set_state(
            bob, room_id, "m.room.member", {"membership": "join", "displayname": name}, bob.user_id
        )
    assert "initial" not in client.sync()["rooms"][room_id]


def test_a_room_that_was_left_is_sent_once(server: TestServer) -> None:
    alice = server.register("alice")
    room_id = create(alice)
    client = SlidingClient(alice, lists={"all": a_list([0, 9], state=ME)})
    client.sync()
    act(alice, room_id, "leave")
    answer = client.sync()
    assert answer["lists"]["all"]["count"] == 1
    assert answer["rooms"][room_id]["required_state"][0]["content"]["membership"] == "leave"
    answer = client.sync()
    assert answer["rooms"] == {}
    assert answer["lists"]["all"]["count"] == 0
    assert shown(alice) == set()


def test_forgotten_rooms_are_not_sent(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(bob, preset="public_chat")
    act(alice, room_id, "join")
    act(bob, room_id, "kick", user_id=alice.user_id)
    assert shown(alice) == {room_id}
    act(alice, room_id, "forget")
    assert shown(alice) == set()


def test_rooms_are_ordered_by_their_latest_events(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    first, second = create(alice), create(alice)
    invited = create(bob, invite=[alice.user_id])
    set_state(alice, first, "m.room.topic", {"topic": "tea"})
    say(bob, invited, "unseen")
    client = SlidingClient(alice, lists={"all": a_list([0, 0])})
    assert list(client.sync()["rooms"]) == [first]
    client.body["lists"]["all"]["ranges"] = [[1, 1]]
    assert list(client.sync()["rooms"]) == [invited]
    client.body["lists"]["all"]["ranges"] = [[2, 2]]
    assert list(client.sync()["rooms"]) == [second]


def test_subscribed_rooms_are_sent(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id, foreign = create(alice, name="tea"), create(bob, preset="public_chat")
    wanted = {"timeline_limit": 2, "required_state": [["m.room.name", ""]]}
    client = SlidingClient(
        alice, room_subscriptions={room_id: wanted, foreign: wanted, "!none:example.org": wanted}
    )
    answer = client.sync()
    assert list(answer["rooms"]) == [room_id]
    assert answer["lists"] == {}
    say(alice, room_id, "one")
    del client.body["room_subscriptions"]
    assert client.sync()["rooms"] == {}
    client.body["room_subscriptions"] = {room_id: wanted}
    room = client.sync()["rooms"][room_id]
    assert texts(room) == ["one"]
    assert "initial" not in room


def test_lists_can_be_filtered(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    plain, space = (
        create(alice, name="Green Tea"),
        create(alice, creation_content={"type": "m.space"}),
    )
    secret = create(
        alice,
        initial_state=[
            {
                "type": "m.room.encryption",
                "state_key": "",
                "content": {"algorithm": "m.megolm.v1.aes-sha2"},
            }
        ],
    )
    invited = create(bob, invite=[alice.user_id])
    data = f"/_matrix/client/v3/user/{alice.user_id}"
    assert alice.put(f"{data}/account_data/m.direct", {bob.user_id: [plain]}).status == 200
    assert alice.put(f"{data}/rooms/{secret}/tags/m.favourite", {}).status == 200
    set_state(alice, space, "m.space.child", {"via": ["example.org"]}, plain)
    set_state(alice, space, "m.space.child", {}, secret)
    everything = {plain, space, secret, invited}
    assert shown(alice) == everything
    assert shown(alice, is_dm=None) == everything
    assert shown(alice, is_dm=True) == {plain}
    assert shown(alice, is_dm=False) == everything - {plain}
    assert shown(alice, is_encrypted=True) == {secret}
    assert shown(alice, is_encrypted=False) == everything - {secret}
    assert shown(alice, is_invite=True) == {invited}
    assert shown(alice, is_invite=False) == everything - {invited}
    assert shown(alice, room_types=[None]) == everything - {space}
    assert shown(alice, room_types=["m.space"]) == {space}
    assert shown(alice, room_types=[]) == set()
    assert shown(alice, not_room_types=["m.space"]) == everything - {space}
    assert shown(alice, room_types=["m.space", None], not_room_types=[None]) == {space}
    assert shown(alice, tags=["m.favourite", "u.x"]) == {secret}
    assert shown(alice, not_tags=["m.favourite"]) == everything - {secret}
    assert shown(alice, spaces=[space]) == {plain}
    assert shown(alice, spaces=["!none:example.org"]) == set()
    assert shown(alice, room_name_like="TEA") == {plain}
    assert shown(alice, is_dm=True, is_encrypted=True) == set()
    assert alice.delete(f"{data}/rooms/{secret}/tags/m.favourite").status == 200
    set_state(alice, secret, "m.room.name", {"name": "black tea"})
    assert shown(alice, tags=["m.favourite"]) == set()
    assert shown(alice, room_name_like="tea") == {plain, secret}


def test_filters_of_invites_use_the_stripped_state_that_is_sent(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    algorithm = {
        "type": "m.room.encryption",
        "state_key": "",
        "content": {"algorithm": "m.megolm.v1.aes-sha2"},
    }
    encrypted = create(bob, invite=[alice.user_id], initial_state=[algorithm])
    space = create(bob, invite=[alice.user_id], creation_content={"type": "m.space"})
    assert shown(alice, is_encrypted=True) == {encrypted}
    assert shown(alice, room_types=["m.space"]) == {space}


def test_messages_of_ignored_users_are_not_shown(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    path = f"/_matrix/client/v3/user/{alice.user_id}/account_data/m.ignored_user_list"
    assert alice.put(path, {"ignored_users": {bob.user_id: {}}}).status == 200
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=9)})
    client.sync()
    say(bob, room_id, "unheard")
    pending = client.wait()
    server.clock.advance(0)
    assert not pending.done
    server.clock.advance(30)
    assert pending.answer.json["rooms"][room_id].keys() == {
        "bump_stamp",
        "notification_count",
        "highlight_count",
    }


def test_own_events_have_their_transaction_id(server: TestServer) -> None:
    alice = server.register("alice")
    room_id = create(alice)
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    client.sync()
    content = {"msgtype": "m.text", "body": "one"}
    ok(put_event(alice, room_id, "m.room.message", content, "one"))
    (event,) = client.sync()["rooms"][room_id]["timeline"]
    assert event["unsigned"]["transaction_id"] == "one"
    assert event["unsigned"]["membership"] == "join"


def test_a_message_outside_the_timeline_moves_the_room_and_counts(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    client = SlidingClient(bob, lists={"all": a_list([0, 9], limit=0)})
    stamp = client.sync()["rooms"][room_id]["bump_stamp"]
    say(alice, room_id, "hello")
    received = client.sync()["rooms"][room_id]
    assert received["bump_stamp"] > stamp
    assert received["notification_count"] == 1
    assert "timeline" not in received
    fresh = SlidingClient(bob, "fresh", lists=client.body["lists"]).sync()["rooms"][room_id]
    assert fresh["bump_stamp"] == received["bump_stamp"]
    assert client.sync()["rooms"] == {}


def test_a_message_of_an_ignored_user_moves_the_room_as_for_a_new_client(
    server: TestServer,
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    ignored: dict[str, Any] = {"ignored_users": {alice.user_id: {}}}
    bob.put(f"/_matrix/client/v3/user/{bob.user_id}/account_data/m.ignored_user_list", ignored)
    client = SlidingClient(bob, lists={"all": a_list([0, 9], limit=3)})
    client.sync()
    say(alice, room_id, "hello")
    received = client.sync()["rooms"][room_id]
    fresh = SlidingClient(bob, "fresh", lists=client.body["lists"]).sync()["rooms"][room_id]
    assert received["bump_stamp"] == fresh["bump_stamp"]
    assert received["notification_count"] == fresh["notification_count"] == 0
    assert "timeline" not in received


def counts_of(answer: dict[str, Any]) -> dict[str, int]:
    return {room_id: room["notification_count"] for room_id, room in answer["rooms"].items()}


def test_counts_that_change_without_an_event_are_sent(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    older, newer = (create(alice, preset="public_chat") for _ in range(2))
    for room_id in (older, newer):
        act(bob, room_id, "join")
    events = {
        room_id: [say(alice, room_id, f"{n}{room_id[1:5]}") for n in range(2)]
        for room_id in (older, newer)
    }

    def read(room_id: str, event_id: str, kind: str = "m.read") -> None:
        answer = bob.post(f"/_matrix/client/v3/rooms/{room_id}/receipt/{kind}/{event_id}", {})
        assert answer.status == 200, answer.body

    client = SlidingClient(bob, lists={"all": a_list([0, 9])})
    narrow = SlidingClient(bob, "narrow", lists={"all": a_list([0, 9])})
    assert counts_of(client.sync()) == counts_of(narrow.sync()) == {older: 2, newer: 2}
    narrow.body["lists"] = {"all": a_list([0, 0])}
    pending = client.wait()
    read(older, events[older][0])
    for _ in range(5):
        server.clock.advance(0.2)
    assert counts_of(pending.answer.json) == {older: 1}
    client.pos = pending.answer.json["pos"]
    assert counts_of(client.sync()) == {}
    read(newer, events[newer][1], "m.read.private")
    assert counts_of(client.sync()) == {newer: 0}
    assert counts_of(narrow.sync()) == {newer: 0}
    narrow.body["lists"] = {"all": a_list([0, 9])}
    assert counts_of(narrow.sync()) == {older: 1}, "it was out of view when it was read"
    assert counts_of(narrow.sync()) == {}
    ignored: dict[str, Any] = {"ignored_users": {alice.user_id: {}}}
    bob.put(f"/_matrix/client/v3/user/{bob.user_id}/account_data/m.ignored_user_list", ignored)
    assert counts_of(client.sync())[older] == 0
    assert counts_of(client.sync()) == {}


def test_counts_are_sent_after_a_restart(server: TestServer, tmp_path: Path) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id, other = (create(alice, preset="public_chat") for _ in range(2))
    for each in (room_id, other):
        act(bob, each, "join")
        event_id = say(alice, each, f"hello{each[1:5]}")
    client = SlidingClient(bob, lists={"all": a_list([0, 9])})
    client.sync()
    bob.post(f"/_matrix/client/v3/rooms/{other}/receipt/m.read/{event_id}", {})
    bob.server = TestServer(tmp_path, server.app.database, seed=2)
    assert counts_of(client.sync()) == {other: 0}
    assert counts_of(client.sync()) == {}


@pytest.mark.parametrize("what", ["redact", "reply", "rename", "ignore"])
def test_a_new_client_gets_the_current_room(server: TestServer, what: str) -> None:
    """Another client, which began before, got the same events from memory."""
    alice, bob, carol = (server.register(name) for name in ("alice", "bob", "carol"))
    room_id = create(alice, preset="public_chat", name="Tea")
    act(bob, room_id, "join")
    act(carol, room_id, "join")
    sent = [say((alice, bob)[number % 2], room_id, f"{number}") for number in range(4)]

    def begin() -> dict[str, Any]:
        client = SlidingClient(carol, lists={"all": a_list([0, 9], limit=4)})
        entry: dict[str, Any] = client.sync()["rooms"][room_id]
        return entry

    assert texts(begin()) == ["0", "1", "2", "3"]
    if what == "redact":
        ok(redact(alice, room_id, sent[2]))
        (event,) = [each for each in begin()["timeline"] if each["event_id"] == sent[2]]
        assert event["content"] == {}
    elif what == "reply":
        relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": sent[2]}}
        put_event(alice, room_id, "m.room.message", {"body": "so", **relation})
        (event,) = [each for each in begin()["timeline"] if each["event_id"] == sent[2]]
        assert event["unsigned"]["m.relations"]["m.thread"]["count"] == 1
    elif what == "rename":
        set_state(alice, room_id, "m.room.name", {"name": "Coffee"})
        assert begin()["name"] == "Coffee"
    else:
        path = f"/_matrix/client/v3/user/{carol.user_id}/account_data/m.ignored_user_list"
        ok(carol.put(path, {"ignored_users": {alice.user_id: {}}}))
        assert texts(begin()) == ["1", "3"]
