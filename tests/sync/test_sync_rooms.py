"""The rooms of /sync: which section they are in, their timelines and their state. spec:
client-server-api#syncing"""

import pytest

from homeserver.services.sync import joined_rooms
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import Json, Rooms, bodies, ids, keys, sync, sync_path, token

pytestmark = pytest.mark.usefixtures("compared")

rooms = Rooms()
CREATE = ("m.room.create", "")
TOPIC = ("m.room.topic", "")


def limit(events: int) -> Json:
    return {"room": {"timeline": {"limit": events}}}


def messages(user: User, room: str, **query: object) -> Json:
    text = "&".join(f"{name}={value}" for name, value in query.items())
    answer = user.get(f"/_matrix/client/v3/rooms/{room}/messages?{text}")
    assert answer.status == 200, answer.body
    return dict(answer.json)


def test_the_response_for_a_new_account_has_all_sections(server: TestServer) -> None:
    answer = sync(server.register("alice"))
    assert "rooms" not in answer
    assert {"next_batch", "account_data", "presence", "to_device", "device_lists"} < answer.keys()
    assert {"device_one_time_keys_count", "device_unused_fallback_key_types"} < answer.keys()


def test_an_initial_sync_has_state_up_to_the_timeline_and_the_timeline(server: TestServer) -> None:
    alice = server.register("alice")
    room = rooms.create(alice, topic="tea")
    for number in range(3):
        rooms.say(alice, room, f"{number}")
    joined = sync(alice, filter=limit(2))["rooms"]["join"][room]
    assert bodies(joined) == ["1", "2"]
    assert joined["timeline"]["limited"] is True
    assert {CREATE, TOPIC, ("m.room.member", alice.user_id)} <= keys(joined["state"]["events"])
    assert all(
        "room_id" not in event for event in joined["state"]["events"] + joined["timeline"]["events"]
    )
    whole = sync(alice, filter=limit(100))["rooms"]["join"][room]
    assert whole["timeline"]["limited"] is False
    assert whole["state"]["events"] == []
    assert whole["timeline"]["events"][0]["type"] == "m.room.create"


@pytest.mark.parametrize("begins", [True, False])
def test_timelines_that_are_too_large_together_are_short(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    monkeypatch.setattr(joined_rooms, "EVENTS_PER_READ", 10)
    monkeypatch.setattr(joined_rooms, "MAX_TIMELINES_BYTES", 5000)
    alice, bob = server.register("alice"), server.register("bob")
    all_rooms = [rooms.create(alice, bob, topic="old") for _ in range(5)]
    since = None if begins else token(alice)
    said = {room: [f"{number} {'x' * 500}" for number in range(8)] for room in all_rooms}
    for room in all_rooms:
        rooms.state(alice, room, "org.example.kind", {"kind": room})
        for text in said[room]:
            rooms.say(bob, room, text)

    received = sync(alice, since, filter=limit(50))["rooms"]["join"]

    assert received.keys() == set(all_rooms)
    short = [room for room in all_rooms if len(bodies(received[room])) == 1]
    assert 1 < len(short) < 5
    for room in all_rooms:
        timeline = received[room]["timeline"]
        assert timeline["limited"] is (room in short)
        assert bodies(received[room]) == said[room][-1 if room in short else 0 :]
        told_state = [
            event
            for event in received[room]["state"]["events"] + timeline["events"]
            if "state_key" in event
        ]
        assert ("org.example.kind", "") in keys(told_state)
        if room in short:
            before = messages(alice, room, dir="b", limit=7, **{"from": timeline["prev_batch"]})
            assert [event["content"]["body"] for event in before["chunk"]] == said[room][-2::-1]


def test_an_incremental_sync_has_new_events_and_no_state(server: TestServer) -> None:
    alice = server.register("alice")
    room, other = rooms.create(alice), rooms.create(alice)
    since = token(alice)
    rooms.state(alice, room, "m.room.topic", {"topic": "tea"})
    answer = sync(alice, since)
    assert list(answer["rooms"]["join"]) == [room] != [other]
    joined = answer["rooms"]["join"][room]
    assert keys(joined["timeline"]["events"]) == {TOPIC}
    assert joined["state"]["events"] == []
    assert joined["timeline"]["limited"] is False
    assert "rooms" not in sync(alice, answer["next_batch"])
    assert sync(alice, since)["rooms"]["join"][room]["timeline"]["events"], (
        "a token may be used again"
    )


def test_a_gap_is_filled_by_messages(server: TestServer) -> None:
    alice = server.register("alice")
    room = rooms.create(alice)
    rooms.say(alice, room, "before")
    since = token(alice)
    sent = [rooms.say(alice, room, f"{number}") for number in range(9)]
    joined = sync(alice, since, limit(3))["rooms"]["join"][room]
    assert ids(joined) == sent[6:]
    assert joined["timeline"]["limited"] is True
    start = joined["timeline"]["prev_batch"]
    page = messages(alice, room, dir="b", to=since, limit=4, **{"from": start})
    rest = messages(alice, room, dir="b", to=since, limit=4, **{"from": page["end"]})
    assert [event["event_id"] for event in page["chunk"] + rest["chunk"]] == sent[5::-1]
    forwards = messages(alice, room, dir="f", to=start, limit=100, **{"from": since})
    assert [event["event_id"] for event in forwards["chunk"]] == sent[:6], (
        "as the specification tells it to be asked"
    )


@pytest.mark.parametrize("name", ["use_state_after", "org.matrix.msc4222.use_state_after"])
def test_the_state_is_before_or_after_the_timeline(server: TestServer, name: str) -> None:
    alice = server.register("alice")
    room = rooms.create(alice)
    since = token(alice)
    for number in range(4):
        rooms.state(alice, room, "m.room.topic", {"topic": f"{number}"})
    before = sync(alice, since, limit(2))["rooms"]["join"][room]
    assert [event["content"]["topic"] for event in before["state"]["events"]] == ["1"]
    assert "state_after" not in before
    after = sync(alice, since, limit(2), **{name: "true"})["rooms"]["join"][room]
    section = name.replace("use_", "")  # the answer uses the name of the request's parameter
    assert [event["content"]["topic"] for event in after[section]["events"]] == ["3"]
    assert "state" not in after
    rooms.say(alice, room)
    quiet = sync(alice, token(alice), **{name: "true"}, full_state="true")["rooms"]["join"][room]
    assert CREATE in keys(quiet[section]["events"])


def test_full_state_has_the_state_and_only_the_new_timeline(server: TestServer) -> None:
    alice = server.register("alice")
    room = rooms.create(alice)
    since = token(alice)
    sent = rooms.say(alice, room)
    joined = sync(alice, since, full_state="true", timeout=30_000)["rooms"]["join"][room]
    assert ids(joined) == [sent]
    assert CREATE in keys(joined["state"]["events"])
    quiet = sync(alice, token(alice), full_state="true", timeout=30_000)["rooms"]["join"][room]
    assert ids(quiet) == []
    assert CREATE in keys(quiet["state"]["events"])


def test_a_newly_joined_room_is_complete(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, topic="tea")
    event_id = rooms.say(alice, room, "before")
    rooms.read(alice, room, event_id)
    rooms.type(alice, room)
    since = token(bob)
    rooms.join(bob, room)
    joined = sync(bob, since, limit(2))["rooms"]["join"][room]
    assert bodies(joined) == ["before"]
    assert {CREATE, TOPIC} <= keys(joined["state"]["events"])
    assert {event["type"] for event in joined["ephemeral"]["events"]} == {"m.receipt", "m.typing"}
    assert joined["summary"]["m.joined_member_count"] == 2


def test_a_rejoined_room_is_complete_with_its_account_data(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    rooms.keep(bob, "a.b", {"n": 1}, room)
    rooms.act(bob, room, "leave")
    since = token(bob)
    rooms.state(alice, room, "m.room.topic", {"topic": "missed"})
    rooms.join(bob, room)
    joined = sync(bob, since, limit(1))["rooms"]["join"][room]
    assert {CREATE, TOPIC} <= keys(joined["state"]["events"])
    assert joined["account_data"]["events"] == [{"type": "a.b", "content": {"n": 1}}]


def test_leaving_and_rejoining_between_syncs_sends_the_complete_state(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    rooms.keep(bob, "a.b", {"n": 1}, room)
    rooms.read(bob, room, rooms.say(alice, room, "read"))
    rooms.state(alice, room, "m.room.history_visibility", {"history_visibility": "joined"})
    since = token(bob)
    rooms.act(bob, room, "leave")
    rooms.act(bob, room, "forget")  # so this device has nothing of the room any more
    rooms.state(alice, room, "m.room.topic", {"topic": "missed"})
    rooms.say(alice, room, "missed")
    rooms.join(bob, room)
    joined = sync(bob, since)["rooms"]["join"][room]
    assert bodies(joined) == []
    assert {CREATE, TOPIC} <= keys(joined["state"]["events"]), (
        "what happened meanwhile is not shown, the state is"
    )
    assert keys(joined["timeline"]["events"]) == {("m.room.member", bob.user_id)}
    assert joined["account_data"]["events"] == [{"type": "a.b", "content": {"n": 1}}]
    assert [event["type"] for event in joined["ephemeral"]["events"]] == ["m.receipt"]


def test_a_new_display_name_is_not_a_new_join(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    since = token(bob)
    for name in ("Bob", "Bobby"):
        rooms.state(
            bob, room, "m.room.member", {"membership": "join", "displayname": name}, bob.user_id
        )
    joined = sync(bob, since)["rooms"]["join"][room]
    assert len(joined["timeline"]["events"]) == 2
    assert joined["state"]["events"] == []


@pytest.mark.parametrize("verb", ["leave", "kick", "ban"])
def test_a_former_member_gets_all_events_up_to_the_leave(server: TestServer, verb: str) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    since = token(bob)
    rooms.say(alice, room, "last")
    if verb == "leave":
        rooms.act(bob, room, "leave")
    else:
        rooms.act(alice, room, verb, bob)
    rooms.say(alice, room, "secret")
    rooms.state(alice, room, "m.room.topic", {"topic": "secret"})
    answer = sync(bob, since)
    left = answer["rooms"]["leave"][room]
    assert "join" not in answer["rooms"]
    assert bodies(left) == ["last"]
    assert left["timeline"]["events"][-1]["state_key"] == bob.user_id
    assert "rooms" not in sync(bob, answer["next_batch"])
    assert "rooms" not in sync(bob), "rooms that one has left are not in an initial sync"
    for events in (0, 1, 100):
        wanted = {"room": {"include_leave": True, "timeline": {"limit": events}}}
        left = sync(bob, filter=wanted)["rooms"]["leave"][room]
        assert "secret" not in bodies(left)
        assert all(event["content"].get("topic") != "secret" for event in left["state"]["events"])
        assert CREATE in keys(
            [
                event
                for event in left["state"]["events"] + left["timeline"]["events"]
                if "state_key" in event
            ]
        )
    rooms.act(bob, room, "forget") if verb != "ban" else None
    if verb != "ban":
        assert "rooms" not in sync(bob, filter={"room": {"include_leave": True}})


def test_a_room_joined_and_left_between_syncs_is_complete(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice)
    since = token(bob)
    rooms.join(bob, room)
    rooms.act(bob, room, "leave")
    left = sync(bob, since, limit(1))["rooms"]["leave"][room]
    assert CREATE in keys(left["state"]["events"])


def test_an_invite_has_stripped_state_until_it_is_declined(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, preset="private_chat", name="Tea house")
    since = token(bob)
    rooms.act(alice, room, "invite", bob)
    answer = sync(bob, since)
    events = answer["rooms"]["invite"][room]["invite_state"]["events"]
    assert {
        ("m.room.name", ""),
        ("m.room.join_rules", ""),
        CREATE,
        ("m.room.member", bob.user_id),
    } <= keys(events)
    assert all(event.keys() == {"type", "state_key", "sender", "content"} for event in events)
    assert sync(bob)["rooms"]["invite"][room]["invite_state"]["events"] == events
    rooms.act(bob, room, "leave")
    left = sync(bob, answer["next_batch"])["rooms"]["leave"][room]
    assert keys(left["timeline"]["events"]) == {("m.room.member", bob.user_id)}
    assert left["state"]["events"] == [], "who never was in the room is told nothing of it"
    assert "rooms" not in sync(bob)


def test_a_knock_has_stripped_state(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, name="Tea house")
    rooms.state(alice, room, "m.room.join_rules", {"join_rule": "knock"})
    since = token(bob)
    assert bob.post(f"/_matrix/client/v3/knock/{room}").status == 200
    answer = sync(bob, since)
    events = answer["rooms"]["knock"][room]["knock_state"]["events"]
    assert {("m.room.name", ""), ("m.room.member", bob.user_id)} <= keys(events)
    rooms.act(alice, room, "kick", bob)
    assert room in sync(bob, answer["next_batch"])["rooms"]["leave"]


@pytest.mark.parametrize(
    ("visibility", "seen"),
    [
        ("joined", []),
        ("invited", ["while invited"]),
        ("shared", ["before", "while invited"]),
        ("world_readable", ["before", "while invited"]),
    ],
)
def test_history_before_the_join_is_sent_if_visible(
    server: TestServer, visibility: str, seen: list[str]
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice)
    rooms.state(alice, room, "m.room.history_visibility", {"history_visibility": visibility})
    rooms.say(alice, room, "before")
    rooms.act(alice, room, "invite", bob)
    rooms.say(alice, room, "while invited")
    rooms.join(bob, room)
    rooms.say(alice, room, "after")
    joined = sync(bob, filter=limit(100))["rooms"]["join"][room]
    assert bodies(joined) == [*seen, "after"]
    said = {
        event["content"]["body"]: event["unsigned"]["membership"]
        for event in joined["timeline"]["events"]
        if "body" in event["content"]
    }
    memberships = {"before": "leave", "while invited": "invite", "after": "join"}
    assert said == {body: memberships[body] for body in (*seen, "after")}


@pytest.mark.parametrize("after", [False, True])
def test_a_visible_state_change_before_the_join_is_replaced_by_a_hidden_one(
    server: TestServer, after: bool
) -> None:
    """Carol may see how the room's history was closed to her, and not what was made of that later:
    for who makes the state from the timeline it begins after the former."""
    alice, carol = server.register("alice"), server.register("carol")
    room = rooms.create(alice)
    closed = rooms.state(alice, room, "m.room.history_visibility", {"history_visibility": "joined"})
    opened = rooms.state(
        alice, room, "m.room.history_visibility", {"history_visibility": "invited"}
    )
    rooms.join(carol, room)
    joined = sync(carol, filter=limit(100), use_state_after=str(after).lower())["rooms"]["join"][
        room
    ]
    assert (closed in ids(joined), opened in ids(joined)) == (after, False)
    assert joined["timeline"]["limited"] is not after
    assert ("m.room.member", carol.user_id) in keys(joined["timeline"]["events"])
    received = joined["state_after" if after else "state"]["events"]
    assert opened in {event["event_id"] for event in received}
    older = carol.get(
        f"/_matrix/client/v3/rooms/{room}/messages?dir=b&from={joined['timeline']['prev_batch']}"
    ).json
    assert (closed in {event["event_id"] for event in older["chunk"]}) is not after


def test_the_summary_has_heroes_while_the_room_has_no_name(server: TestServer) -> None:
    alice, bob, carol = (server.register(name) for name in ("alice", "bob", "carol"))
    room = rooms.create(alice, bob)
    rooms.act(alice, room, "invite", carol)
    first = sync(alice)
    summary = first["rooms"]["join"][room]["summary"]
    assert summary == {
        "m.heroes": [bob.user_id, carol.user_id],
        "m.joined_member_count": 2,
        "m.invited_member_count": 1,
    }
    rooms.say(bob, room)
    second = sync(alice, first["next_batch"])
    assert second["rooms"]["join"][room]["summary"] == {}, "it has not changed"
    rooms.state(alice, room, "m.room.name", {"name": "Tea house"})
    assert "m.heroes" not in sync(alice)["rooms"]["join"][room]["summary"]
    third = token(alice)
    rooms.state(alice, room, "m.room.name", {})
    assert sync(alice, third)["rooms"]["join"][room]["summary"]["m.heroes"] == [
        bob.user_id,
        carol.user_id,
    ]
    rooms.act(bob, room, "leave")
    rooms.act(carol, room, "leave")
    assert sync(alice, third)["rooms"]["join"][room]["summary"]["m.heroes"] == [
        bob.user_id,
        carol.user_id,
    ]


def test_unsigned_data_depend_on_the_reader(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    login = password_auth("alice")
    phone = User(server, server.post("/_matrix/client/v3/login", login).json)
    sent = rooms.send(alice, room, "m.room.message", {"body": "x"}, txn="mine")
    topic = rooms.state(alice, room, "m.room.topic", {"topic": "one"})
    rooms.state(alice, room, "m.room.topic", {"topic": "two"})
    server.clock.advance(5)

    def read(user: User) -> dict[str, Json]:
        events = sync(user, filter=limit(100))["rooms"]["join"][room]["timeline"]["events"]
        return {event["event_id"]: event["unsigned"] for event in events}

    assert read(alice)[sent] == {"age": 5000, "membership": "join", "transaction_id": "mine"}
    assert read(phone)[sent] == read(bob)[sent] == {"age": 5000, "membership": "join"}
    replaced = list(read(bob).values())[-1]
    assert replaced["prev_content"] == {"topic": "one"}
    assert replaced["replaces_state"] == topic
    assert replaced["prev_sender"] == alice.user_id


def test_redacted_events_have_no_content_and_their_redaction(server: TestServer) -> None:
    alice = server.register("alice")
    room = rooms.create(alice)
    since = token(alice)
    sent = rooms.say(alice, room, "secret")
    sync(alice, since)
    redaction = rooms.redact(alice, room, sent)
    events = sync(alice, since)["rooms"]["join"][room]["timeline"]["events"]
    assert [event["event_id"] for event in events] == [sent, redaction]
    assert events[0]["content"] == {}
    assert events[0]["unsigned"]["redacted_because"]["event_id"] == redaction


def test_messages_of_ignored_users_are_hidden(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    since = token(alice)
    rooms.keep(alice, "m.ignored_user_list", {"ignored_users": {bob.user_id: {}}})
    rooms.say(bob, room, "noise")
    name = rooms.state(
        bob, room, "m.room.member", {"membership": "join", "displayname": "Bob"}, bob.user_id
    )
    rooms.act(bob, rooms.create(bob, preset="private_chat"), "invite", alice)
    answer = sync(alice, since)
    joined = answer["rooms"]["join"][room]
    assert "invite" not in answer["rooms"]
    assert ids(joined) == [name], "their state events are shown"
    assert joined["unread_notifications"] == {"notification_count": 0, "highlight_count": 0}
    assert "noise" not in bodies(
        {"timeline": {"events": messages(alice, room, dir="b", limit=50)["chunk"]}}
    )
    rooms.keep(alice, "m.ignored_user_list", {"ignored_users": {}})
    assert "noise" in bodies(sync(alice)["rooms"]["join"][room])
    assert "invite" in sync(alice)["rooms"]


@pytest.mark.parametrize(
    "since", ["x", "s1", "s1_", "s-1_2", "s1_2_3", "t1_2", "s" + "9" * 30 + "_1", "s１_2"]
)
def test_an_invented_token_is_refused(server: TestServer, since: str) -> None:
    answer = server.register("alice").get(sync_path(since))
    assert answer.status == 400
    assert answer.errcode == "M_INVALID_PARAM"


def test_a_token_from_before_a_restore_gets_everything(server: TestServer) -> None:
    """After the operator went back to a backup, clients know more than the server does."""
    alice = server.register("alice")
    room = rooms.create(alice)
    answer = sync(alice, "s999999_1", timeout=30_000)
    assert CREATE in keys(
        answer["rooms"]["join"][room]["state"]["events"]
        + answer["rooms"]["join"][room]["timeline"]["events"][:1]
    )
    assert answer["next_batch"] == token(alice)


def test_a_rejoining_user_gets_memberships_that_changed_meanwhile(server: TestServer) -> None:
    """A device that loads members lazily, and was never told that its user had left, keeps those
    that it had."""
    alice, bob, carol = (server.register(name) for name in ("alice", "bob", "carol"))
    room_id = rooms.create(alice, bob, carol, name="tea")
    lazily: Json = {"room": {"timeline": {"limit": 1}, "state": {"lazy_load_members": True}}}
    rooms.say(carol, room_id)
    since = sync(bob, filter=lazily)["next_batch"]
    since = sync(bob, since, filter=lazily)["next_batch"]
    rooms.act(bob, room_id, "leave")
    rooms.state(
        carol,
        room_id,
        "m.room.member",
        {"membership": "join", "displayname": "Karolina"},
        carol.user_id,
    )
    rooms.join(bob, room_id)
    rooms.say(alice, room_id)
    received = sync(bob, since, filter=lazily)["rooms"]["join"][room_id]["state"]["events"]
    names = {
        event["state_key"]: event["content"].get("displayname")
        for event in received
        if event["type"] == "m.room.member"
    }
    assert names == {alice.user_id: "alice", bob.user_id: "bob", carol.user_id: "Karolina"}
