"""Sliding sync: the rooms in a response, and what of them clients get."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.room_actions import create, say, set_state
from tests.helpers.server import TestServer
from tests.helpers.sliding_client import (
    STABLE,
    UNSTABLE,
    SlidingClient,
    a_list,
    act,
    state_of,
    texts,
)

pytestmark = pytest.mark.usefixtures("compared")

LAZY = [["m.room.member", "$LAZY"]]


def test_the_feature_is_advertised(server: TestServer) -> None:
    features = server.get("/_matrix/client/versions").json["unstable_features"]
    assert features["org.matrix.simplified_msc3575"] is True


def test_the_first_response_has_all_rooms_in_the_window(server: TestServer) -> None:
    alice = server.register("alice")
    create(alice, name="old")
    room_id = create(alice, name="new", topic="tea")
    say(alice, room_id, "hello")
    client = SlidingClient(
        alice, lists={"all": a_list([0, 0], state=[["m.room.name", ""], ["m.room.member", "$ME"]])}
    )
    answer = client.sync()
    assert answer["lists"] == {"all": {"count": 2}}
    assert list(answer["rooms"]) == [room_id]
    room = answer["rooms"][room_id]
    assert room["initial"] is True
    assert room["name"] == "new"
    assert room["limited"] is True
    assert texts(room) == ["hello"]
    assert room["num_live"] == 0
    assert state_of(room) == {("m.room.name", ""), ("m.room.member", alice.user_id)}
    assert room["joined_count"] == 1
    assert room["invited_count"] == 0
    assert room["bump_stamp"] > 0
    assert "avatar" not in room
    assert "is_dm" not in room
    assert "room_id" not in room["timeline"][0]
    older = alice.get(
        f"/_matrix/client/v3/rooms/{room_id}/messages?dir=b&from={room['prev_batch']}&limit=1"
    ).json
    assert older["chunk"][0]["type"] == "m.room.topic"


def test_a_pos_can_start_a_page_of_messages(server: TestServer) -> None:
    alice = server.register("alice")
    room_id = create(alice)
    say(alice, room_id, "one")
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    client.sync()
    say(alice, room_id, "two")
    page = alice.get(
        f"/_matrix/client/v3/rooms/{room_id}/messages?dir=b&from={client.pos}&limit=1"
    ).json
    assert page["chunk"][0]["content"]["body"] == "one"


def test_without_changes_the_response_is_empty(server: TestServer) -> None:
    alice = server.register("alice")
    create(alice)
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    client.sync()
    answer = client.sync()
    assert answer["rooms"] == {}
    assert answer["lists"] == {"all": {"count": 1}}


def test_later_responses_have_only_changes(server: TestServer) -> None:
    alice = server.register("alice")
    room_id = create(alice, name="a")
    create(alice)
    client = SlidingClient(
        alice, lists={"all": a_list([0, 9], limit=5, state=[["m.room.topic", ""]])}
    )
    client.sync()
    say(alice, room_id, "one")
    set_state(alice, room_id, "m.room.topic", {"topic": "tea"})
    set_state(alice, room_id, "m.room.avatar", {"url": "mxc://example.org/a"})
    (received, room), *others = client.sync()["rooms"].items()
    assert received == room_id
    assert not others
    assert "initial" not in room
    assert "limited" not in room
    assert "name" not in room
    assert "joined_count" not in room
    assert texts(room) == ["one"]
    assert room["num_live"] == 3
    assert state_of(room) == {("m.room.topic", "")}
    assert room["avatar"] == "mxc://example.org/a"
    set_state(alice, room_id, "m.room.avatar", {})
    assert client.sync()["rooms"][room_id]["avatar"] is None


def test_a_long_poll_ends_with_a_message(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    client.sync()
    pending = client.wait()
    assert not pending.done
    say(bob, room_id, "hello")
    server.clock.advance(0)
    server.clock.advance(0)
    assert texts(pending.answer.json["rooms"][room_id]) == ["hello"]


def test_a_long_poll_ends_empty_after_its_timeout(server: TestServer) -> None:
    alice = server.register("alice")
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    client.sync()
    pending = client.wait()
    server.clock.advance(29)
    assert not pending.done
    server.clock.advance(2)
    assert pending.answer.json["rooms"] == {}


def test_a_lost_response_is_repeated(server: TestServer) -> None:
    alice = server.register("alice")
    room_id = create(alice)
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=5)})
    client.sync()
    fresh = create(alice)
    say(alice, room_id, "one")
    before = client.pos
    first = client.sync()["rooms"]
    client.pos = before
    repeated = client.sync()["rooms"]
    assert first.keys() == repeated.keys() == {room_id, fresh}
    assert repeated[fresh]["initial"] is True
    assert texts(repeated[room_id]) == ["one"]
    assert client.sync()["rooms"] == {}


def test_unknown_positions_are_refused(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    create(alice)
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    positions = []
    for limit in range(1, 4):
        client.body["lists"]["all"]["timeline_limit"] = limit  # what it has is stored each time
        client.sync()
        positions.append(client.pos)
        create(alice)
    first, second, third = positions
    # the answer to the second may have got lost, or may have come after all
    usable = alice.post(f"{UNSTABLE}?pos={second}", client.body).json["pos"]
    assert usable != third
    assert alice.post(f"{UNSTABLE}?pos={third}", client.body).status == 200
    for user, pos, conn_id in (
        (alice, first, "room-list"),
        (alice, "nonsense", "room-list"),
        (alice, usable, "another"),
        (bob, usable, "room-list"),
    ):
        answer = user.post(f"{UNSTABLE}?pos={pos}", {**client.body, "conn_id": conn_id})
        assert (answer.status, answer.errcode) == (400, "M_UNKNOWN_POS")
    # once it has gone on with one of them the other one goes
    client.body["lists"]["all"]["timeline_limit"] = 4
    assert alice.post(f"{UNSTABLE}?pos={usable}", client.body).status == 200
    answer = alice.post(f"{UNSTABLE}?pos={third}", client.body)
    assert (answer.status, answer.errcode) == (400, "M_UNKNOWN_POS")


def test_connections_do_not_disturb_each_other(server: TestServer) -> None:
    alice = server.register("alice")
    room_id = create(alice)
    rooms = SlidingClient(alice, lists={"all": a_list([0, 9])})
    others = SlidingClient(alice, "encryption", extensions={"e2ee": {"enabled": True}})
    nameless = SlidingClient(alice, lists={"all": a_list([0, 9])})
    del nameless.body["conn_id"]
    assert room_id in rooms.sync()["rooms"]
    assert others.sync()["rooms"] == {}
    assert room_id in nameless.sync()["rooms"]
    say(alice, room_id, "one")
    assert others.sync()["rooms"] == {}
    assert (
        texts(rooms.sync()["rooms"][room_id]) == texts(nameless.sync()["rooms"][room_id]) == ["one"]
    )


def test_a_restart_loses_nothing(server: TestServer, tmp_path: Path) -> None:
    alice = server.register("alice")
    room_id = create(alice)
    client = SlidingClient(
        alice, lists={"all": a_list([0, 9], limit=5, state=[["m.room.name", ""], *LAZY])}
    )
    client.sync()
    say(alice, room_id, "one")
    restarted = TestServer(tmp_path, server.app.database, seed=2)
    alice.server = restarted
    room = client.sync()["rooms"][room_id]
    assert "initial" not in room
    assert texts(room) == ["one"]
    assert client.sync()["rooms"] == {}
    say(alice, room_id, "two")
    assert texts(client.sync()["rooms"][room_id]) == ["two"]


def test_a_room_that_leaves_and_reenters_the_window_misses_nothing(server: TestServer) -> None:
    alice = server.register("alice")
    first, second = create(alice, name="first"), create(alice, name="second")
    say(alice, first, "top")
    client = SlidingClient(
        alice, lists={"all": a_list([0, 0], limit=3, state=[["m.room.name", ""]])}
    )
    assert list(client.sync()["rooms"]) == [first]
    say(alice, second, "other")
    assert client.sync()["rooms"][second]["initial"] is True
    set_state(alice, first, "m.room.name", {"name": "renamed"})
    say(alice, second, "covers")
    assert list(client.sync()["rooms"]) == [second]
    client.sync()
    say(alice, first, "back")
    room = client.sync()["rooms"][first]
    assert "initial" not in room
    assert "limited" not in room
    assert [event["type"] for event in room["timeline"]] == ["m.room.name", "m.room.message"]
    assert room["name"] == "renamed"
    assert room["num_live"] == 1  # the other was before the last answer
    for number in range(5):
        say(alice, second, f"more{number}")
        client.sync()
    for number in range(5):
        say(alice, first, f"missed{number}")
        say(alice, second, f"above{number}")
        client.sync()
    say(alice, first, "last")
    room = client.sync()["rooms"][first]
    assert texts(room) == ["missed3", "missed4", "last"]
    assert room["limited"] is True
    assert "initial" not in room


def test_a_moved_window_sends_new_rooms(server: TestServer) -> None:
    alice = server.register("alice")
    rooms = [create(alice) for _ in range(6)][::-1]
    client = SlidingClient(alice, lists={"all": a_list([0, 1])})
    assert list(client.sync()["rooms"]) == rooms[:2]
    client.body["lists"]["all"]["ranges"] = [[0, 1], [4, 5]]
    assert list(client.sync()["rooms"]) == rooms[4:]
    client.body["lists"]["all"].pop("ranges")
    answer = client.sync()
    assert list(answer["rooms"]) == rooms[2:4]
    assert answer["lists"]["all"]["count"] == 6
    assert client.sync()["rooms"] == {}


def test_configs_of_lists_and_subscriptions_are_merged(server: TestServer) -> None:
    alice = server.register("alice")
    room_id = create(alice, name="tea", topic="green")
    for number in range(5):
        say(alice, room_id, f"m{number}")
    client = SlidingClient(
        alice,
        lists={
            "a": a_list([0, 9], limit=1, state=[["m.room.name", ""]]),
            "b": a_list([0, 9], limit=3, state=[["m.room.topic", ""]]),
        },
        room_subscriptions={
            room_id: {"timeline_limit": 2, "required_state": [["m.room.create", ""]]}
        },
    )
    room = client.sync()["rooms"][room_id]
    assert texts(room) == ["m2", "m3", "m4"]
    assert state_of(room) == {("m.room.name", ""), ("m.room.topic", ""), ("m.room.create", "")}


def test_a_larger_timeline_limit_sends_the_timeline_at_once(server: TestServer) -> None:
    alice = server.register("alice")
    room_id = create(alice, name="tea")
    for number in range(5):
        say(alice, room_id, f"m{number}")
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=1)})
    client.sync()
    say(alice, room_id, "m5")
    client.sync()
    client.body["room_subscriptions"] = {
        room_id: {"timeline_limit": 4, "required_state": [["m.room.name", ""]]}
    }
    pending = client.wait()
    room = pending.answer.json["rooms"][room_id]
    assert texts(room) == ["m2", "m3", "m4", "m5"]
    assert room["num_live"] == 0
    assert room["unstable_expanded_timeline"] is True
    assert "initial" not in room
    assert room["limited"] is True
    assert state_of(room) == {("m.room.name", "")}
    client.pos = pending.answer.json["pos"]
    assert not client.wait().done
    del client.body["room_subscriptions"]
    assert not client.wait().done
    client.body["room_subscriptions"] = {
        room_id: {"timeline_limit": 4, "required_state": [["m.room.name", ""]]}
    }
    assert client.sync()["rooms"] == {}  # it has them all


def test_further_required_state_sends_only_added_entries(server: TestServer) -> None:
    alice = server.register("alice")
    room_id = create(alice, name="tea", topic="green")
    client = SlidingClient(alice, lists={"all": a_list([0, 9], state=[["m.room.name", ""]])})
    client.sync()
    client.body["lists"]["all"]["required_state"].append(["m.room.topic", "*"])
    room = client.sync()["rooms"][room_id]
    assert state_of(room) == {("m.room.topic", "")}
    assert "timeline" not in room
    client.body["lists"]["all"]["required_state"] = [["*", "*"]]
    added = state_of(client.sync()["rooms"][room_id])
    assert ("m.room.create", "") in added
    assert ("m.room.topic", "") not in added
    set_state(alice, room_id, "org.example", {"a": 1}, "k")
    assert state_of(client.sync()["rooms"][room_id]) == {("org.example", "k")}


def test_lazy_members_are_sent_with_their_events(server: TestServer) -> None:
    alice, bob, carol = (server.register(name) for name in ("alice", "bob", "carol"))
    room_id = create(alice, preset="public_chat")
    for user in (bob, carol):
        act(user, room_id, "join")
    say(bob, room_id, "m0")
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=2, state=LAZY)})
    assert state_of(client.sync()["rooms"][room_id]) == {
        ("m.room.member", bob.user_id),
        ("m.room.member", carol.user_id),
    }
    say(bob, room_id, "m1")
    assert state_of(client.sync()["rooms"][room_id]) == set()
    say(alice, room_id, "m2")
    assert state_of(client.sync()["rooms"][room_id]) == {("m.room.member", alice.user_id)}
    assert (
        carol.put(
            f"/_matrix/client/v3/profile/{carol.user_id}/displayname", {"displayname": "C"}
        ).status
        == 200
    )
    server.clock.advance(1)
    assert state_of(client.sync()["rooms"][room_id]) == {("m.room.member", carol.user_id)}
    assert (
        bob.put(
            f"/_matrix/client/v3/profile/{bob.user_id}/displayname", {"displayname": "B"}
        ).status
        == 200
    )
    server.clock.advance(1)
    for number in range(3):
        say(alice, room_id, f"n{number}")
    room = client.sync()["rooms"][room_id]
    assert room["limited"] is True
    assert state_of(room) == set()
    say(bob, room_id, "m3")
    assert state_of(client.sync()["rooms"][room_id]) == {("m.room.member", bob.user_id)}


@pytest.mark.parametrize("has_message", [False, True])
def test_lazy_members_requested_later_are_sent(server: TestServer, *, has_message: bool) -> None:
    alice, bob, carol = (server.register(name) for name in ("alice", "bob", "carol"))
    room_id = create(alice, preset="public_chat", name="room")
    for user in (bob, carol):
        act(user, room_id, "join")
    say(bob, room_id, "m0")
    client = SlidingClient(
        alice, lists={"all": a_list([0, 9], limit=1, state=[["m.room.name", ""]])}
    )
    client.sync()
    client.body["lists"] = {"all": a_list([0, 9], limit=1, state=[["m.room.name", ""], *LAZY])}
    if has_message:
        say(alice, room_id, "m1")
    room = client.sync()["rooms"][room_id]
    speakers = {
        ("m.room.member", user.user_id) for user in ((alice, bob) if has_message else (bob,))
    }
    assert state_of(room) == speakers
    assert texts(room) == (["m1"] if has_message else [])
    assert "limited" not in room
    assert client.sync()["rooms"] == {}


def test_a_room_has_a_name_or_heroes(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat", is_direct=True)
    act(bob, room_id, "join")
    assert (
        bob.put(
            f"/_matrix/client/v3/profile/{bob.user_id}/displayname", {"displayname": "Bob"}
        ).status
        == 200
    )
    server.clock.advance(1)
    assert (
        alice.put(
            f"/_matrix/client/v3/user/{alice.user_id}/account_data/m.direct",
            {bob.user_id: [room_id]},
        ).status
        == 200
    )
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    room = client.sync()["rooms"][room_id]
    assert room["heroes"] == [{"user_id": bob.user_id, "displayname": "Bob"}]
    assert "name" not in room
    assert room["is_dm"] is True
    assert room["joined_count"] == 2
    act(bob, room_id, "leave")
    room = client.sync()["rooms"][room_id]
    assert room["joined_count"] == 1
    assert [hero["user_id"] for hero in room["heroes"]] == [bob.user_id]


@pytest.mark.parametrize("form", [UNSTABLE, STABLE])
@pytest.mark.parametrize(
    ("type", "content"), [("m.room.name", "name"), ("m.room.canonical_alias", "alias")]
)
def test_a_room_that_loses_its_name_gets_heroes(
    server: TestServer, form: str, type: str, content: str
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat", room_alias_name="room")
    act(bob, room_id, "join")
    set_state(alice, room_id, "m.room.canonical_alias", {})
    set_state(alice, room_id, type, {content: "#room:example.org"})

    def ask(pos: str | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "lists": {"all": {"timeline_limit": 1, "required_state": {} if form == STABLE else []}}
        }
        if pos is not None and form == STABLE:
            body["pos"] = pos
        answer = alice.post(form if pos is None or form == STABLE else f"{form}?pos={pos}", body)
        assert answer.status == 200, answer.body
        json: dict[str, Any] = answer.json
        return json

    first = ask(None)
    assert "heroes" not in first["rooms"][room_id]
    set_state(alice, room_id, type, {})
    room = ask(first["pos"])["rooms"][room_id]
    assert [hero["user_id"] for hero in room["heroes"]] == [bob.user_id]
    assert room["joined_count"] == 2


def test_rooms_have_unread_counts(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    client.sync()
    say(bob, room_id, "m1")
    say(bob, room_id, "m2")
    room = client.sync()["rooms"][room_id]
    assert (room["notification_count"], room["highlight_count"]) == (2, 0)


def test_the_accepted_form_is_supported(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, name="tea")
    invited = create(bob, invite=[alice.user_id])
    state = {"include": [{}], "exclude": [{"type": "m.room.member"}], "lazy_members": True}
    wanted = {"a": {"range": [0, 5], "timeline_limit": 1, "required_state": state}}
    body = {"lists": {**wanted, "i": {"timeline_limit": 1, "filters": {"is_invited": True}}}}
    answer = alice.post(STABLE, body).json
    assert answer["lists"] == {"a": {"count": 2}, "i": {"count": 1}}
    room = answer["rooms"][room_id]
    assert room["membership"] == "join"
    assert room["lists"] == ["a"]
    assert "notification_count" not in room
    assert ("m.room.name", "") in state_of(room)
    assert ("m.room.member", alice.user_id) in state_of(room)
    assert answer["rooms"][invited]["stripped_state"]
    assert answer["rooms"][invited]["lists"] == ["a", "i"]
    set_state(alice, room_id, "m.room.name", {})
    pending = alice.start("POST", STABLE, {**body, "pos": answer["pos"], "timeout": 30000})
    assert pending.answer.json["rooms"][room_id]["name"] is None
    pending = alice.start(
        "POST", STABLE, {**body, "pos": pending.answer.json["pos"], "timeout": 30000}
    )
    assert not pending.done


def test_the_accepted_form_sends_changes_of_is_dm(server: TestServer, tmp_path: Path) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    older, newer = (create(alice, name=name) for name in ("older", "newer"))
    body: dict[str, Any] = {"lists": {"a": {"range": [0, 1], "timeline_limit": 1}}}
    pos = alice.post(STABLE, body).json["pos"]

    def direct(*rooms: str) -> None:
        path = f"/_matrix/client/v3/user/{alice.user_id}/account_data/m.direct"
        assert alice.put(path, {bob.user_id: list(rooms)}).status == 200

    def received(**further: Any) -> dict[str, Any]:
        nonlocal pos
        answer = alice.post(STABLE, {**body, **further, "pos": pos}).json
        pos = answer["pos"]
        rooms: dict[str, Any] = answer["rooms"]
        return rooms

    assert received() == {}
    direct(newer)
    moved = received()
    assert moved[newer]["is_dm"] is True
    assert "timeline" not in moved[newer]
    assert "name" not in moved[newer]
    assert set(moved) == {newer}
    assert received() == {}
    say(alice, newer, "hello")
    assert received()[newer]["is_dm"] is True

    only_newest = {"lists": {"a": {"range": [0, 0], "timeline_limit": 1}}}
    direct(older)
    assert received(**only_newest)[newer]["is_dm"] is False
    assert received(**only_newest) == {}
    assert {room_id: entry["is_dm"] for room_id, entry in received().items()} == {older: True}
    assert received() == {}
    alice.server = TestServer(tmp_path, server.app.database, seed=2)
    assert received() == {}, "what was told outlives a restart"


def test_an_older_pos_gets_the_members_again(server: TestServer) -> None:
    """An app is opened again before it had stored what it heard last."""
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    say(alice, room_id, "first")
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=1, state=LAZY)})
    client.sync()
    client.sync()
    stored = client.pos
    say(bob, room_id, "hello")
    received = client.sync()["rooms"][room_id]
    client.sync()
    client.pos = stored
    repeated = client.sync()["rooms"][room_id]
    assert texts(repeated) == texts(received) == ["hello"]
    assert ("m.room.member", bob.user_id) in state_of(received)
    assert ("m.room.member", bob.user_id) in state_of(repeated)
