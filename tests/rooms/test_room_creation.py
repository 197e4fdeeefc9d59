"""createRoom: request fields, presets and room versions. spec:
client-server-api#post_matrixclientv3createroom"""

from pathlib import Path
from typing import Any

import pytest

from federation.protocol.room_versions import ROOM_VERSIONS
from storage.engine.database import Database
from tests.helpers.room_actions import (
    V3,
    create,
    full_state,
    get_state,
    join,
    messages,
    ok,
    refused,
    say,
)
from tests.helpers.server import TestServer, User

CREATE_ROOM = f"{V3}/createRoom"


def types_in_order(user: User, room_id: str) -> list[str]:
    return [event["type"] for event in messages(user, room_id, "f", limit=100)["chunk"]]


def test_a_room_is_private_by_default(alice: User) -> None:
    room_id = create(alice)
    assert types_in_order(alice, room_id) == [
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.join_rules",
        "m.room.history_visibility",
        "m.room.guest_access",
    ]
    assert get_state(alice, room_id, "m.room.join_rules") == {"join_rule": "invite"}
    assert ok(alice.get(f"{V3}/directory/list/room/{room_id}")) == {"visibility": "private"}


@pytest.mark.parametrize(
    ("requested", "join_rule", "guest_access"),
    [
        ({"preset": "private_chat"}, "invite", "can_join"),
        ({"preset": "trusted_private_chat"}, "invite", "can_join"),
        ({"preset": "public_chat"}, "public", "forbidden"),
        ({"visibility": "public"}, "public", "forbidden"),
        ({"visibility": "private"}, "invite", "can_join"),
        ({"visibility": "public", "preset": "private_chat"}, "invite", "can_join"),
        ({"preset": None, "visibility": None, "name": None, "invite": None}, "invite", "can_join"),
    ],
)
def test_presets_set_their_state(
    alice: User, requested: dict[str, Any], join_rule: str, guest_access: str
) -> None:
    room_id = create(alice, **requested)
    assert get_state(alice, room_id, "m.room.join_rules") == {"join_rule": join_rule}
    assert get_state(alice, room_id, "m.room.history_visibility") == {
        "history_visibility": "shared"
    }
    assert get_state(alice, room_id, "m.room.guest_access") == {"guest_access": guest_access}
    assert get_state(alice, room_id, "m.room.encryption") is None


def test_events_come_in_the_order_of_the_specification(alice: User, bob: User) -> None:
    room_id = create(
        alice,
        preset="public_chat",
        visibility="public",
        room_alias_name="hovli",
        name="Hovli",
        topic="Choy",
        invite=[bob.user_id],
        initial_state=[
            {"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}},
            {"type": "org.example.colour", "state_key": "roof", "content": {"is": "blue"}},
            {"type": "m.room.name", "content": {"name": "lost"}},
        ],
    )
    assert types_in_order(alice, room_id) == [
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.canonical_alias",
        "m.room.join_rules",
        "m.room.guest_access",
        "m.room.history_visibility",
        "org.example.colour",
        "m.room.name",
        "m.room.topic",
        "m.room.member",
    ]
    assert get_state(alice, room_id, "m.room.canonical_alias") == {"alias": "#hovli:example.org"}
    assert get_state(alice, room_id, "m.room.history_visibility") == {
        "history_visibility": "joined"
    }
    assert get_state(alice, room_id, "org.example.colour", "roof") == {"is": "blue"}
    assert get_state(alice, room_id, "m.room.name") == {"name": "Hovli"}
    assert get_state(alice, room_id, "m.room.topic") == {
        "topic": "Choy",
        "m.topic": {"m.text": [{"body": "Choy", "mimetype": "text/plain"}]},
    }
    assert get_state(alice, room_id, "m.room.member", bob.user_id)["membership"] == "invite"
    assert ok(alice.get(f"{V3}/directory/room/%23hovli:example.org"))["room_id"] == room_id
    assert ok(alice.get(f"{V3}/directory/list/room/{room_id}")) == {"visibility": "public"}


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_room_can_be_created_in_every_version(alice: User, bob: User, version: str) -> None:
    room_id = create(
        alice,
        room_version=version,
        preset="public_chat",
        creation_content={"creator": "@eve:e", "x": 1},
    )
    state = full_state(alice, room_id)
    content = state["m.room.create", ""]["content"]
    assert content["room_version"] == version
    assert content["x"] == 1
    assert content.get("creator") == (None if int(version) >= 11 else alice.user_id)
    levels = state["m.room.power_levels", ""]["content"]
    assert levels["users"] == ({} if int(version) >= 12 else {alice.user_id: 100})
    assert levels["events"]["m.room.tombstone"] == (150 if int(version) >= 12 else 100)
    assert room_id.endswith(":example.org") == (int(version) < 12)
    join(bob, room_id)
    say(bob, room_id, "salom")


@pytest.mark.parametrize(
    ("override", "level"),
    [
        ({"events": {"org.matrix.msc3401.call.member": 0}}, 150),  # the request of Element Web
        ({"state_default": 200}, 201),
        ({"state_default": 200, "events": {"m.room.name": 0}}, 201),
        ({"events": {"m.room.tombstone": 60}}, 60),
    ],
)
def test_the_level_for_state_does_not_suffice_for_a_tombstone(
    alice: User, override: dict[str, Any], level: int
) -> None:
    levels = get_state(
        alice, create(alice, power_level_content_override=override), "m.room.power_levels"
    )
    assert levels["events"].pop("m.room.tombstone") == level
    if "events" in override:
        assert levels["events"] == {
            name: at for name, at in override["events"].items() if name != "m.room.tombstone"
        }


def test_older_versions_keep_the_requested_power_levels(alice: User) -> None:
    room_id = create(
        alice, room_version="11", power_level_content_override={"events": {"m.room.name": 0}}
    )
    assert get_state(alice, room_id, "m.room.power_levels")["events"] == {"m.room.name": 0}


def test_the_default_version_names_the_room_by_its_first_event(alice: User) -> None:
    room_id = create(alice)
    created = messages(alice, room_id, "f", limit=1)["chunk"][0]
    assert created["content"]["room_version"] == "12"
    assert room_id[1:] == created["event_id"][1:]


def test_the_default_version_can_be_set(tmp_path: Path, sqlite_database: Database) -> None:
    alice = TestServer(tmp_path, sqlite_database, "default_room_version: '10'\n").register("alice")
    assert get_state(alice, create(alice), "m.room.create")["room_version"] == "10"


@pytest.mark.parametrize("version", ["11", "12"])
def test_trusted_private_chat_gives_all_invitees_the_creators_power(
    alice: User, bob: User, version: str
) -> None:
    ok(bob.put(f"{V3}/profile/{bob.user_id}/displayname", {"displayname": "Bob"}))
    room_id = create(
        alice,
        room_version=version,
        preset="trusted_private_chat",
        invite=[bob.user_id],
        is_direct=True,
        creation_content={"additional_creators": ["@carol:example.org", bob.user_id]},
    )
    state = full_state(alice, room_id)
    assert state["m.room.member", bob.user_id]["content"] == {
        "membership": "invite",
        "displayname": "Bob",
        "is_direct": True,
    }
    if version == "12":
        assert state["m.room.create", ""]["content"]["additional_creators"] == [
            "@carol:example.org",
            bob.user_id,
        ]
        assert state["m.room.power_levels", ""]["content"]["users"] == {}
    else:
        assert state["m.room.power_levels", ""]["content"]["users"] == {
            alice.user_id: 100,
            bob.user_id: 100,
        }


def test_power_levels_can_be_overridden(alice: User) -> None:
    override = {"users_default": 10, "events": {"m.room.name": 0}}
    room_id = create(alice, power_level_content_override=override)
    levels = get_state(alice, room_id, "m.room.power_levels")
    assert levels["users_default"] == 10
    assert levels["events"] == {"m.room.name": 0, "m.room.tombstone": 150}
    assert levels["ban"] == 50


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ({"room_version": "99"}, (400, "M_UNSUPPORTED_ROOM_VERSION")),
        ({"room_version": 12}, (400, "M_BAD_JSON")),
        ({"preset": "open_house"}, (400, "M_BAD_JSON")),
        ({"visibility": "secret"}, (400, "M_BAD_JSON")),
        ({"invite": ["bob"]}, (400, "M_INVALID_PARAM")),
        ({"invite": ["@alice:example.org"]}, (400, "M_INVALID_PARAM")),
        ({"invite": [f"@u{n}:example.org" for n in range(101)]}, (400, "M_BAD_JSON")),
        ({"invite_3pid": [{"medium": "email", "address": "a@b.c"}]}, (400, "M_INVALID_PARAM")),
        ({"room_alias_name": "#hovli:example.org"}, (400, "M_INVALID_PARAM")),
        ({"room_alias_name": ""}, (400, "M_INVALID_PARAM")),
        ({"room_alias_name": "x" * 300}, (400, "M_INVALID_PARAM")),
        ({"room_alias_name": "a\0b"}, (400, "M_INVALID_PARAM")),
        ({"initial_state": [{"type": "m.room.create", "content": {}}]}, (400, "M_INVALID_PARAM")),
        ({"initial_state": [{"type": "m.room.member", "content": {}}]}, (400, "M_INVALID_PARAM")),
        ({"initial_state": [{"content": {}}]}, (400, "M_BAD_JSON")),
        ({"initial_state": [{"type": "x", "content": {"at": 1.5}}]}, (400, "M_BAD_JSON")),
        ({"initial_state": [{"type": "x" * 256, "content": {}}]}, (413, "M_TOO_LARGE")),
        ({"name": "x" * 66_000}, (413, "M_TOO_LARGE")),
        (
            {"power_level_content_override": {"users": {}}, "room_version": "11"},
            (400, "M_INVALID_ROOM_STATE"),
        ),
        (
            {
                "power_level_content_override": {"users": {"@alice:example.org": 100}},
                "room_version": "12",
            },
            (400, "M_INVALID_ROOM_STATE"),
        ),
        ({"power_level_content_override": {"users": "all"}}, (400, "M_INVALID_ROOM_STATE")),
        ({"creation_content": {"additional_creators": ["carol"]}}, (400, "M_INVALID_ROOM_STATE")),
        (
            {
                "creation_content": {"additional_creators": "x"},
                "preset": "trusted_private_chat",
                "invite": ["@b:x"],
            },
            (400, "M_BAD_JSON"),
        ),
    ],
)
def test_invalid_requests_are_refused(
    alice: User, requested: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert refused(alice.post(CREATE_ROOM, requested)) == expected
    assert ok(alice.get(f"{V3}/joined_rooms")) == {"joined_rooms": []}


def test_an_alias_in_use_is_refused(alice: User, bob: User) -> None:
    create(alice, room_alias_name="hovli")
    assert refused(bob.post(CREATE_ROOM, {"room_alias_name": "hovli"})) == (400, "M_ROOM_IN_USE")
    assert ok(bob.get(f"{V3}/joined_rooms")) == {"joined_rooms": []}


def test_a_name_in_the_initial_state_is_used_if_the_request_has_no_name(alice: User) -> None:
    room_id = create(alice, initial_state=[{"type": "m.room.name", "content": {"name": "Hovli"}}])
    assert get_state(alice, room_id, "m.room.name") == {"name": "Hovli"}


def test_a_private_room_needs_an_invite_and_guests_cannot_create_rooms(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id = create(alice)
    assert refused(bob.post(f"{V3}/rooms/{room_id}/join")) == (403, "M_FORBIDDEN")
    guest = User(server, ok(server.post(f"{V3}/register?kind=guest", {})))
    assert refused(guest.post(CREATE_ROOM)) == (403, "M_GUEST_ACCESS_FORBIDDEN")


@pytest.mark.parametrize(
    ("setting", "preset", "encrypted"),
    [
        ("off", "private_chat", False),
        ("invite", "private_chat", True),
        ("invite", "trusted_private_chat", True),
        ("invite", "public_chat", False),
        ("all", "public_chat", True),
    ],
)
def test_new_rooms_are_encrypted_if_configured(
    tmp_path: Path, sqlite_database: Database, setting: str, preset: str, encrypted: bool
) -> None:
    config = f"encryption_enabled_by_default_for_room_type: {setting}\n"
    alice = TestServer(tmp_path, sqlite_database, config).register("alice")
    content = get_state(alice, create(alice, preset=preset), "m.room.encryption")
    assert content == ({"algorithm": "m.megolm.v1.aes-sha2"} if encrypted else None)


def test_the_operator_configures_power_levels_and_invites(
    tmp_path: Path, sqlite_database: Database
) -> None:
    config = (
        "default_power_level_content_override: {public_chat: {events_default: 25, invite: 25}}\n"
        "block_non_admin_invites: true\n"
        "include_profile_data_on_invite: false\n"
    )
    server = TestServer(tmp_path, sqlite_database, config)
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat", power_level_content_override={"invite": 30})
    levels = get_state(alice, room_id, "m.room.power_levels")
    assert (levels["events_default"], levels["invite"]) == (25, 30)
    assert get_state(alice, create(alice), "m.room.power_levels")["events_default"] == 0
    assert refused(alice.post(CREATE_ROOM, {"invite": [bob.user_id]})) == (403, "M_FORBIDDEN")


def test_two_simultaneous_requests_make_two_rooms(alice: User) -> None:
    assert create(alice) != create(alice)


def test_two_simultaneous_requests_on_two_nodes_make_two_rooms(
    tmp_path: Path, database: Database
) -> None:
    one = TestServer(tmp_path, database)
    alice = one.register("alice")
    other = TestServer(tmp_path, database, seed=2)
    assert one.clock.seconds() == other.clock.seconds()
    here = ok(alice.post(f"{V3}/createRoom", {}))["room_id"]
    there = ok(other.client.request("POST", f"{V3}/createRoom", token=alice.token, json={}))[
        "room_id"
    ]
    assert here != there
    old = {"new_version": "12"}
    upgraded = ok(
        other.client.request("POST", f"{V3}/rooms/{there}/upgrade", token=alice.token, json=old)
    )
    assert upgraded["replacement_room"] not in (here, there)


def test_rooms_are_created_on_both_databases(tmp_path: Path, database: Database) -> None:
    alice = TestServer(tmp_path, database).register("alice")
    room_id = create(alice, name="Hovli", room_alias_name="hovli", visibility="public")
    restarted = TestServer(tmp_path, database)
    assert ok(restarted.get(f"{V3}/directory/room/%23hovli:example.org"))["room_id"] == room_id
