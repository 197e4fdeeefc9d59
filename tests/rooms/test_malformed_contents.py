"""Odd values in events of well-known types make no reader fail.

Clients, and other servers, may put anything into events: here each member of well-known events,
account data and profiles is once each of some odd values. Afterwards the rooms are read in every
way there is. Mostly on PostgreSQL, which knows no NUL in a text.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from storage.engine.database import Database
from tests.helpers.http import Answer
from tests.helpers.room_actions import V3, create, join, ok, room_path
from tests.helpers.server import TestServer, User

V1 = "/_matrix/client/v1"
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
LARGEST = 2**53 - 1

STATE: Mapping[str, tuple[str, ...]] = {
    "m.room.name": ("name",),
    "m.room.topic": ("topic", "m.topic"),
    "m.room.avatar": ("url", "info"),
    "m.room.canonical_alias": ("alias", "alt_aliases"),
    "m.room.pinned_events": ("pinned",),
    "m.room.encryption": ("algorithm", "rotation_period_ms"),
    "m.room.server_acl": ("deny", "allow_ip_literals"),
    "m.room.guest_access": ("guest_access",),
    "m.room.tombstone": ("body", "replacement_room"),
    "m.room.third_party_invite": ("display_name", "public_key", "public_keys", "key_validity_url"),
    "m.room.policy": ("via", "public_key", "public_keys"),
    "m.space.child": ("via", "order", "suggested"),
    "m.space.parent": ("via", "canonical"),
    "m.room.retention": ("max_lifetime",),
    "m.room.member": ("displayname", "avatar_url", "reason", "is_direct", "third_party_invite"),
    "org.matrix.msc3401.call.member": ("memberships", "expires"),
    "m.room.power_levels": ("notifications",),
    "m.room.join_rules": ("allow",),
}
MESSAGES: Mapping[str, tuple[str, ...]] = {
    "m.room.message": (
        "msgtype",
        "body",
        "m.relates_to",
        "m.mentions",
        "m.new_content",
        "format",
        "url",
        "file",
    ),
    "m.reaction": ("m.relates_to",),
    "m.room.encrypted": ("algorithm", "ciphertext", "m.relates_to"),
    "m.poll.start": ("m.poll", "m.relates_to"),
    "m.call.notify": ("notify_type", "m.mentions"),
}
RELATION = ("rel_type", "event_id", "key", "m.in_reply_to", "is_falling_back")
ACCOUNT_DATA: Mapping[str, tuple[str, ...]] = {
    "m.ignored_user_list": ("ignored_users",),
    "m.direct": ("@bob:example.org", "\0"),
    "m.invite_permission_config": ("default_action",),
    "org.matrix.msc4155.invite_permission_config": ("enabled", "blocked_users", "ignored_servers"),
    "m.marked_unread": ("unread",),
    "org.matrix.msc3890.local_notification_settings.X": ("is_silenced",),
}
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        LARGEST,
        "",
        "\0",
        "a\0b",
        "x" * 300,
        "\u202e\uffff\U0001f600",
        "@:",
        "!x",
        "$x",
        "#x:",
        "mxc://",
    ),
    *(
        [],
        [None],
        [[]],
        ["\0"],
        {},
        {"": ""},
        {"\0": "\0"},
        {"x": None},
        {"x": {"y": [{}]}},
        {"user_ids": "\0", "room": 1},
    ),
    *(
        {"m.text": [{"body": "\0"}, 1]},
        [{"type": "m.room_membership", "room_id": "\0"}],
        {"\0": 1, "room": "\0"},
    ),
)


class Speaker:
    """Says odd things, in a room of her own."""

    def __init__(self, server: TestServer) -> None:
        self.user = server.register("alice")
        creation = {
            "type": "\0",
            "predecessor": {"room_id": "\0", "event_id": 1},
            "m.federate": False,
        }
        self.room_id = create(
            self.user, preset="public_chat", visibility="public", creation_content=creation
        )
        self.numbers = count()
        self.sent: list[str] = []

    def path(self, *rest: str) -> str:
        return room_path(self.room_id, *rest)

    def state(self, type: str, content: Mapping[str, Any]) -> None:
        """A refusal is one of the server's rules, and no failure."""
        key = self.user.user_id if type == "m.room.member" else self.state_key(type)
        if type == "m.room.member":
            content = {**content, "membership": "join"}
        if type == "m.room.power_levels":
            content = {**ok(self.user.get(self.path("state", type))), **content}
        if type == "m.room.join_rules":
            content = {**content, "join_rule": "restricted"}
        answer = self.user.put(self.path("state", type, key), content)
        assert answer.status in (200, 400, 403), (type, content, answer.body)

    def state_key(self, type: str) -> str:
        return (
            self.room_id
            if type.startswith("m.space.")
            else f"_{next(self.numbers)}"
            if "call" in type
            else ""
        )

    def say(self, type: str, content: Mapping[str, Any]) -> None:
        answer = self.user.put(self.path("send", type, f"t{next(self.numbers)}"), content)
        assert answer.status in (200, 400), (type, content, answer.body)
        if answer.status == 200:
            self.sent.append(answer.json["event_id"])


def contents(names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """So many that each name is each odd value once."""
    for shift in range(len(ODD)):
        yield {name: ODD[(shift + 7 * at) % len(ODD)] for at, name in enumerate(names)}


def relations(target: str) -> Iterator[Mapping[str, Any]]:
    types = cycle(["m.thread", "m.replace", "m.annotation", "m.reference"])
    for name in RELATION:
        for odd in ODD:
            yield {"rel_type": next(types), "event_id": target, "key": "k", name: odd}


def read_everything(user: User, room_id: str, events: list[str]) -> Iterator[tuple[str, Answer]]:
    room, v1 = room_path(room_id), f"{V1}/rooms/{quote(room_id)}"
    lazily = quote(
        '{"room":{"timeline":{"lazy_load_members":true,"unread_thread_notifications":true}}}'
    )
    paths = [
        *(
            f"{V3}/sync",
            f"{V3}/sync?full_state=true&filter={lazily}",
            f"{V3}/initialSync",
            f"{V3}/notifications",
        ),
        *(
            f"{room}/messages?dir=b&limit=1000",
            f"{room}/state",
            f"{room}/members",
            f"{room}/joined_members",
        ),
        *(
            f"{room}/initialSync?limit=100",
            f"{room}/aliases",
            f"{V1}/room_summary/{quote(room_id)}",
            f"{v1}/hierarchy",
        ),
        *(
            f"{v1}/threads",
            f"{v1}/threads?include=participated",
            f"{v1}/timestamp_to_event?ts=0&dir=f",
        ),
        *(f"{V3}/publicRooms", f"{V3}/pushrules/"),
    ]
    for event_id in events:
        paths += [
            f"{room}/context/{quote(event_id)}",
            f"{v1}/relations/{quote(event_id)}?recurse=true",
        ]
    for path in paths:
        yield path, user.get(path)
    everything = {"timeline_limit": 100, "required_state": [["*", "*"]]}
    lists = [
        {"is_dm": True},
        {"is_encrypted": True},
        {"room_types": ["\0", None]},
        {"tags": ["\0"]},
        {"spaces": [room_id]},
    ]
    names = (
        "account_data",
        "receipts",
        "typing",
        "e2ee",
        "to_device",
        "org.matrix.msc4262.profiles",
    )
    sliding = {
        "lists": {
            f"{at}": {"ranges": [[0, 9]], **everything, "filters": each}
            for at, each in enumerate(lists)
        },
        "room_subscriptions": {room_id: everything},
        "extensions": {name: {"enabled": True} for name in names},
    }
    criteria = {
        "search_term": "x\0",
        "include_state": True,
        "event_context": {"include_profile": True},
    }
    for path, body in (
        (SLIDING, sliding),
        (f"{V3}/search", {"search_categories": {"room_events": criteria}}),
        (f"{V3}/publicRooms", {"filter": {"generic_search_term": "\0", "room_types": ["\0"]}}),
        (f"{V3}/user_directory/search", {"search_term": "\0"}),
        (f"{V3}/keys/query", {"device_keys": {user.user_id: []}}),
    ):
        yield path, user.post(path, body)


def test_malformed_remote_events_break_no_endpoint(
    tmp_path: Path, postgres_database: Database
) -> None:
    server = TestServer(tmp_path, postgres_database)
    alice, bob = Speaker(server), server.register("bob")
    join(bob, alice.room_id)
    alice.say("m.room.message", {"msgtype": "m.text", "body": "a root"})
    root = alice.sent[0]
    for type, names in STATE.items():
        for content in contents(names):
            alice.state(type, content)
    alice.state("m.room.join_rules", {"join_rule": "public"})
    for type, names in MESSAGES.items():
        for content in contents(names):
            alice.say(type, {"msgtype": "m.text", "body": "x", **content})
    types = cycle(["m.room.message", "m.reaction"])
    for relation in relations(root):
        alice.say(next(types), {"msgtype": "m.text", "body": "x", "m.relates_to": relation})
    assert len(alice.sent) > 100
    for path, answer in read_everything(bob, alice.room_id, [root, *alice.sent[-3:]]):
        assert answer.status == 200, (path, answer.body[:500])


def test_malformed_account_data_breaks_no_endpoint(
    tmp_path: Path, postgres_database: Database
) -> None:
    server = TestServer(tmp_path, postgres_database)
    alice, bob = Speaker(server), server.register("bob")
    join(bob, alice.room_id)
    alice.say("m.room.message", {"msgtype": "m.text", "body": "a root"})
    own = f"{V3}/user/{bob.user_id}"
    for type, names in ACCOUNT_DATA.items():
        for name in names:
            for odd in ODD:
                for path in (own, f"{own}/rooms/{quote(alice.room_id)}"):
                    ok(bob.put(f"{path}/account_data/{type}", {name: odd}))
                read = bob.get(f"{V3}/sync?filter=" + quote('{"room":{"timeline":{"limit":1}}}'))
                assert read.status == 200, (type, name, odd, read.body)
    for odd in ODD:
        for field in ("displayname", "avatar_url", "m.tz", "org.example.field"):
            answer = bob.put(f"{V3}/profile/{bob.user_id}/{field}", {field: odd})
            assert answer.status in (200, 400), (field, odd, answer.body)
        answer = bob.put(f"{V3}/devices/{bob.device_id}", {"display_name": odd})
        assert answer.status in (200, 400), (odd, answer.body)
        server.clock.advance(1)  # reports are limited
        answer = bob.post(f"{V3}/rooms/{quote(alice.room_id)}/report", {"reason": odd})
        assert answer.status in (200, 400), (odd, answer.body)
        answer = bob.post(
            room_path(alice.room_id, "receipt", "m.read", alice.sent[0]), {"thread_id": odd}
        )
        assert answer.status in (200, 400), (odd, answer.body)
        answer = bob.put(f"{own}/rooms/{quote(alice.room_id)}/tags/u.x", {"order": odd, "x": odd})
        assert answer.status in (200, 400), (odd, answer.body)
        answer = bob.post(f"{own}/filter", {"event_fields": odd, "room": {"rooms": odd}, "x": odd})
        assert answer.status in (200, 400), (odd, answer.body)
    for reader in (bob, alice.user):
        for path, answer in read_everything(reader, alice.room_id, alice.sent):
            assert answer.status == 200, (path, answer.body[:500])


@pytest.mark.parametrize("odd", ["\0", "x" * 300], ids=["NUL", "long"])
def test_rooms_created_with_malformed_state_break_no_endpoint(
    tmp_path: Path, postgres_database: Database, odd: str
) -> None:
    alice = TestServer(tmp_path, postgres_database).register("alice")
    requests: list[dict[str, Any]] = [
        {"name": odd},
        {"topic": odd},
        {"room_alias_name": odd},
        {"creation_content": {"type": odd, odd: odd}},
        {"initial_state": [{"type": odd, "content": {odd: odd}, "state_key": odd}]},
        {
            "initial_state": [
                {"type": "m.space.child", "content": {"via": [odd], "order": odd}, "state_key": odd}
            ]
        },
        {"power_level_content_override": {"events": {odd: 1}, "users": {odd: 1}, odd: 1}},
        {"invite": [odd]},
    ]
    for requested in requests:
        answer = alice.post(f"{V3}/createRoom", {"visibility": "public", **requested})
        assert answer.status in (200, 400, 413), (requested, answer.body)
        if answer.status == 200:
            for path, read in read_everything(alice, answer.json["room_id"], []):
                assert read.status == 200, (path, read.body[:500])
