"""Sending messages and state, and redacting. spec: client-server-api#sending-events-to-a-room"""

import json
from pathlib import Path
from typing import Any

import pytest

from federation.rooms.engine import MAX_REBUILDS
from storage.engine.database import Database
from storage.persist.room_writer import AppendResult, HeadMoved, RoomWriter
from tests.helpers.databases import QueryCounter, open_inline, sqlite_config
from tests.helpers.logins import password_auth
from tests.helpers.room_actions import (
    V3,
    all_texts,
    create,
    get_event,
    get_state,
    join,
    messages,
    ok,
    put_event,
    put_state,
    redact,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User

FORBIDDEN = (403, "M_FORBIDDEN")
VERSIONS = ["1", "3", "10", "11", "12"]
LAST = {"msgtype": "m.text", "body": "at last"}


def test_a_message_has_the_form_of_the_specification(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    event_id = ok(
        put_event(alice, room_id, "m.room.message", {"msgtype": "m.text", "body": "salom"}, "t")
    )["event_id"]
    server.clock.advance(5)
    event = get_event(alice, room_id, event_id)
    assert event == {
        "type": "m.room.message",
        "event_id": event_id,
        "room_id": room_id,
        "sender": alice.user_id,
        "origin_server_ts": event["origin_server_ts"],
        "content": {"msgtype": "m.text", "body": "salom"},
        "unsigned": {"age": 5000, "membership": "join", "transaction_id": "t"},
    }
    assert "transaction_id" not in get_event(bob, room_id, event_id)["unsigned"]


def test_a_repeated_request_sends_once_also_after_a_restart(
    tmp_path: Path, database: Database
) -> None:
    server = TestServer(tmp_path, database)
    alice = server.register("alice")
    room_id = create(alice)
    path = room_path(room_id, "send", "m.room.message", "1")
    first = ok(alice.put(path, {"body": "once"}))
    assert ok(alice.put(path, {"body": "once"})) == first
    restarted = TestServer(tmp_path, database)
    same_device = restarted.client.request("PUT", path, token=alice.token, json={"body": "once"})
    assert ok(same_device) == first
    redaction = room_path(room_id, "redact", first["event_id"], "1")
    redacted = ok(alice.put(redaction, {}))
    assert ok(restarted.client.request("PUT", redaction, token=alice.token, json={})) == redacted
    types = [event["type"] for event in messages(alice, room_id, limit=100)["chunk"]]
    assert (types.count("m.room.message"), types.count("m.room.redaction")) == (1, 1)


def test_a_transaction_id_belongs_to_one_device_and_path(server: TestServer, alice: User) -> None:
    room_id, other = create(alice), create(alice)
    answer = server.post(
        f"{V3}/login",
        password_auth("alice"),
    )
    phone = User(server, ok(answer))
    event_ids = [
        ok(put_event(user, room, type_, {"body": "x"}, "same"))["event_id"]
        for user in (alice, phone)
        for room in (room_id, other)
        for type_ in ("m.room.message", "org.example.x")
    ]
    assert len(set(event_ids)) == 8


def test_a_device_that_signs_in_again_can_reuse_transaction_ids(
    server: TestServer, alice: User
) -> None:
    """A program with a device id of its own that counts from 1 each time: no message is taken for
    one of the last time."""
    bob = server.register("bob")
    room_id = create(alice)
    sign_in = {**password_auth("alice"), "device_id": "BOT"}
    answers = []
    for text in ("first", "second"):
        server.clock.advance(1)
        bot = User(server, ok(server.post(f"{V3}/login", sign_in)))
        answers.append(
            ok(put_event(bot, room_id, "m.room.message", {"body": text}, "1"))["event_id"]
        )
        assert (
            ok(put_event(bot, room_id, "m.room.message", {"body": text}, "1"))["event_id"]
            == answers[-1]
        )
        to_bob = {"messages": {bob.user_id: {bob.device_id: {"text": text}}}}
        ok(bot.put(f"{V3}/sendToDevice/org.example.x/1", to_bob))
        # signed in once more on the device that is there, it is the same one
        still = User(server, ok(server.post(f"{V3}/login", sign_in)))
        assert (
            ok(put_event(still, room_id, "m.room.message", {"body": "no"}, "1"))["event_id"]
            == answers[-1]
        )
        ok(still.post(f"{V3}/logout", {}))
    assert answers[0] != answers[1]
    received = ok(bob.get(f"{V3}/sync"))["to_device"]["events"]
    assert [event["content"]["text"] for event in received] == ["first", "second"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"body": "x" * 66_000}, (413, "M_TOO_LARGE")),
        ({"body": "x" * 140_000}, (413, "M_TOO_LARGE")),
        ({"at": 1.5}, (400, "M_BAD_JSON")),
        ({"at": 2**60}, (400, "M_BAD_JSON")),
        (["a list"], (400, "M_BAD_JSON")),
        (None, (400, "M_NOT_JSON")),
    ],
)
def test_invalid_content_is_refused(alice: User, content: Any, expected: tuple[int, str]) -> None:
    room_id = create(alice)
    if content is None:
        path = room_path(room_id, "send", "m.room.message", "t")
        assert (
            refused(alice.server.client.request("PUT", path, token=alice.token, body=b"{"))
            == expected
        )
        return
    assert refused(put_event(alice, room_id, "m.room.message", content)) == expected
    assert all_texts(alice, room_id) == []


def test_too_deeply_nested_content_is_refused(alice: User) -> None:
    room_id = create(alice)
    for depth in (300, 20_000):
        body = b'{"a":' * depth + b"1" + b"}" * depth
        path = room_path(room_id, "send", "m.room.message", str(depth))
        answer = alice.server.client.request("PUT", path, token=alice.token, body=body)
        assert answer.status in (400, 413)
        assert answer.errcode in ("M_BAD_JSON", "M_NOT_JSON", "M_TOO_LARGE")


def test_old_room_versions_accept_any_number(alice: User) -> None:
    room_id = create(alice, room_version="5")
    event_id = ok(put_event(alice, room_id, "org.example.x", {"at": 1.5, "big": 2**60}))["event_id"]
    assert get_event(alice, room_id, event_id)["content"] == {"at": 1.5, "big": 2**60}


def test_types_and_keys_are_bounded(alice: User) -> None:
    room_id = create(alice)
    assert refused(put_event(alice, room_id, "x" * 256, {})) == (413, "M_TOO_LARGE")
    assert refused(put_state(alice, room_id, "x", {}, "k" * 256)) == (413, "M_TOO_LARGE")
    assert refused(put_event(alice, room_id, "x", {}, "t" * 256)) == (400, "M_INVALID_PARAM")


def test_non_members_and_users_without_power_send_nothing(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    assert refused(put_event(bob, room_id, "m.room.message", {"body": "x"})) == FORBIDDEN
    assert refused(put_event(bob, "!nowhere:example.org", "m.room.message", {})) == FORBIDDEN
    assert refused(put_state(bob, "!nowhere:example.org", "m.room.topic", {})) == FORBIDDEN
    join(bob, room_id)
    assert refused(put_state(bob, room_id, "m.room.name", {"name": "Bobniki"})) == FORBIDDEN
    set_state(alice, room_id, "m.room.power_levels", {"events_default": 10})
    assert refused(put_event(bob, room_id, "m.room.message", {"body": "x"})) == FORBIDDEN
    assert refused(put_event(alice, room_id, "m.room.member", {"membership": "leave"})) in (
        FORBIDDEN,
        (400, "M_BAD_JSON"),
    )
    assert refused(put_event(alice, room_id, "m.room.create", {})) in (
        FORBIDDEN,
        (400, "M_BAD_JSON"),
    )
    assert refused(put_state(alice, room_id, "m.room.create", {})) == FORBIDDEN
    assert refused(alice.put(room_path(room_id, "send", "x", "1", ts=5), {})) == FORBIDDEN


def test_state_is_set_with_and_without_the_slash(alice: User) -> None:
    room_id = create(alice)
    base = room_path(room_id, "state", "m.room.topic")
    first = ok(alice.put(base, {"topic": "a"}))
    assert ok(alice.get(base + "/")) == ok(alice.get(base)) == {"topic": "a"}
    second = ok(alice.put(base + "/", {"topic": "b"}))
    assert first != second
    assert ok(alice.put(base, {"topic": "b"})) == second  # nothing changes: no new event
    event = ok(alice.get(base + "?format=event"))
    assert (event["event_id"], event["content"], event["state_key"]) == (
        second["event_id"],
        {"topic": "b"},
        "",
    )
    assert event["room_id"] == room_id
    assert ok(alice.get(base + "?format=content")) == {"topic": "b"}
    assert refused(alice.get(base + "?format=haiku")) == (400, "M_INVALID_PARAM")
    shown = get_event(alice, room_id, second["event_id"])["unsigned"]
    assert (shown["replaces_state"], shown["prev_content"]) == (first["event_id"], {"topic": "a"})


def test_state_keys_may_have_special_characters(alice: User) -> None:
    room_id = create(alice)
    for key in ("a/b", "ключ", "%", "?#", "@alice:example.org", " "):
        set_state(alice, room_id, "org.example.x", {"key": key}, key)
        assert get_state(alice, room_id, "org.example.x", key) == {"key": key}
    assert refused(put_state(alice, room_id, "org.example.x", {}, "@bob:example.org")) == FORBIDDEN
    assert refused(alice.get(room_path(room_id, "state", "org.example.none"))) == (
        404,
        "M_NOT_FOUND",
    )


def test_canonical_aliases_must_point_to_the_room(alice: User) -> None:
    room_id = create(alice, room_alias_name="one")
    create(alice, room_alias_name="other")
    ok(alice.put(f"{V3}/directory/room/%23two:example.org", {"room_id": room_id}))
    set_state(
        alice,
        room_id,
        "m.room.canonical_alias",
        {"alias": "#one:example.org", "alt_aliases": ["#two:example.org"]},
    )
    for content, errcode in (
        ({"alias": "#other:example.org"}, "M_BAD_ALIAS"),
        ({"alias": "#none:example.org"}, "M_BAD_ALIAS"),
        ({"alt_aliases": ["#none:example.org"]}, "M_BAD_ALIAS"),
        ({"alias": "one"}, "M_INVALID_PARAM"),
        ({"alias": 1}, "M_BAD_JSON"),
        ({"alt_aliases": "#two:example.org"}, "M_BAD_JSON"),
    ):
        assert refused(put_state(alice, room_id, "m.room.canonical_alias", content)) == (
            400,
            errcode,
        )
    ok(alice.delete(f"{V3}/directory/room/%23two:example.org"))
    # what stood there before is not asked about again
    set_state(alice, room_id, "m.room.canonical_alias", {"alt_aliases": ["#two:example.org"]})
    set_state(alice, room_id, "m.room.canonical_alias", {})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("way", ["endpoint", "send"])
def test_events_are_redacted(alice: User, bob: User, version: str, way: str) -> None:
    room_id = create(alice, preset="public_chat", room_version=version)
    join(bob, room_id)
    event_id = say(bob, room_id, "afsus")
    if way == "endpoint":
        redaction_id = ok(redact(bob, room_id, event_id, reason="xato"))["event_id"]
    else:
        content = {"redacts": event_id, "reason": "xato"}
        redaction_id = ok(put_event(bob, room_id, "m.room.redaction", content))["event_id"]
    event = get_event(alice, room_id, event_id)
    assert event["content"] == {}
    because = event["unsigned"]["redacted_because"]
    assert (because["event_id"], because["sender"], because["content"]["reason"]) == (
        redaction_id,
        bob.user_id,
        "xato",
    )
    redaction = get_event(alice, room_id, redaction_id)
    # given in both places, whichever the version has
    assert redaction["redacts"] == redaction["content"]["redacts"] == event_id


@pytest.mark.parametrize("version", VERSIONS)
def test_only_the_sender_and_moderators_redact(alice: User, bob: User, version: str) -> None:
    room_id = create(alice, preset="public_chat", room_version=version)
    join(bob, room_id)
    event_id = say(alice, room_id, "qoladi")
    assert refused(redact(bob, room_id, event_id)) == FORBIDDEN
    by_sending = put_event(bob, room_id, "m.room.redaction", {"redacts": event_id})
    assert refused(by_sending) == FORBIDDEN
    assert all_texts(bob, room_id) == ["qoladi"]
    ok(redact(alice, room_id, say(bob, room_id, "ketadi")))
    assert all_texts(bob, room_id) == ["qoladi"]
    ok(redact(alice, room_id, event_id))
    ok(redact(alice, room_id, event_id))  # once more changes nothing


def test_unknown_events_cannot_be_redacted(alice: User) -> None:
    room_id = create(alice)
    created = messages(alice, room_id, "f", limit=1)["chunk"][0]["event_id"]
    assert refused(redact(alice, room_id, created)) == FORBIDDEN
    assert refused(put_event(alice, room_id, "m.room.redaction", {})) == (400, "M_BAD_JSON")
    assert refused(put_event(alice, room_id, "m.room.redaction", {"redacts": "x"})) == (
        400,
        "M_BAD_JSON",
    )
    assert refused(redact(alice, room_id, "nonsense")) == (400, "M_INVALID_PARAM")
    elsewhere = say(alice, create(alice), "elsewhere")
    ok(redact(alice, room_id, elsewhere))  # unknown in this room: has no effect


def test_redacted_state_is_shown_without_content(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat", name="Hovli", visibility="public")
    join(bob, room_id)
    event_id = ok(alice.get(room_path(room_id, "state", "m.room.name", format="event")))["event_id"]
    ok(redact(alice, room_id, event_id))
    assert get_state(bob, room_id, "m.room.name") == {}
    assert "name" not in ok(bob.get(f"{V3}/publicRooms"))["chunk"][0]


def test_a_send_and_a_join_cost_a_fixed_number_of_queries(
    tmp_path: Path, sqlite_template: Path
) -> None:
    counter = QueryCounter()
    path = tmp_path / "counted.db"
    path.write_bytes(sqlite_template.read_bytes())
    server = TestServer(tmp_path, open_inline(sqlite_config(path), counter))
    alice, bob, carol = server.register("alice"), server.register("bob"), server.register("carol")
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    say(bob, room_id, "first")
    counter.clear()
    say(bob, room_id, "second")
    assert (dict(counter.reads), dict(counter.writes)) == ({}, {"append_events": 1})
    assert counter.queries["append_events"] <= 12
    counter.clear()
    ok(bob.get(room_path(room_id, "state", "m.room.member", alice.user_id)))
    ok(bob.get(room_path(room_id, "state", "m.room.power_levels")))
    assert counter.queries.total() == 0
    counter.clear()
    join(carol, room_id)
    assert dict(counter.writes) == {"append_events": 1}
    assert counter.queries.total() <= 25, json.dumps(counter.queries)
    for number in range(30):
        say(bob, room_id, str(number))
    counter.clear()
    assert len(messages(bob, room_id, limit=30)["chunk"]) == 30
    assert sum(counter.queries.values()) <= 4, json.dumps(counter.queries)


@pytest.mark.parametrize(
    "levels",
    [
        {"ban": "50"},
        {"users": {"@alice:example.org": "100"}},
        {"events": {"m.x": True}},
        {"notifications": {"room": "1"}},
    ],
)
def test_local_power_levels_are_integers_in_every_version(
    alice: User, levels: dict[str, Any]
) -> None:
    """spec: server-server-api#definitions"""
    room = {"room_version": "9"}  # versions in which other servers may still send strings
    room_id = alice.post(f"{V3}/createRoom", room).json["room_id"]
    answer = put_state(alice, room_id, "m.room.power_levels", levels)
    assert refused(answer) == (400, "M_BAD_JSON")
    answer = alice.post(f"{V3}/createRoom", {**room, "power_level_content_override": levels})
    assert refused(answer) == (400, "M_BAD_JSON")


def outrun(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let another node move the head before this one writes, so many times."""
    left = iter(range(times))
    append = RoomWriter.append

    def append_late(self: RoomWriter, *args: Any, **more: Any) -> AppendResult:
        if next(left, None) is not None:
            raise HeadMoved("!room:example.org")
        return append(self, *args, **more)

    monkeypatch.setattr(RoomWriter, "append", append_late)


def test_a_send_is_retried_while_another_node_is_faster(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = server.register("alice")
    room = create(alice)
    outrun(monkeypatch, 50)
    assert put_event(alice, room, "m.room.message", LAST).status == 200


def test_a_send_that_always_conflicts_is_refused_and_can_be_retried(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log names no bug, and the repeated message is stored once."""
    alice = server.register("alice")
    room = create(alice)
    outrun(monkeypatch, MAX_REBUILDS)
    assert put_event(alice, room, "m.room.message", LAST).status == 503
    assert put_event(alice, room, "m.room.message", LAST).status == 200
    assert all_texts(alice, room) == ["at last"]
