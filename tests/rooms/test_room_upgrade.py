"""Upgrades of rooms: what the new room takes over, and what changes in the old one. spec:
client-server-api#room-upgrades"""

from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest

from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.helpers.federated_rooms import two_users
from tests.helpers.http import Answer
from tests.helpers.interleaving import Interleaving
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, join_via
from tests.helpers.room_actions import (
    V3,
    create,
    full_state,
    get_state,
    invite,
    join,
    leave,
    membership,
    messages,
    ok,
    put_event,
    put_state,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User
from tests.helpers.spaces import add_child, create_space, rooms_below


def ask(user: User, room: str, version: str = "12", **more: Any) -> Answer:
    return user.post(room_path(room, "upgrade"), {"new_version": version, **more})


def upgrade(user: User, room: str, version: str = "12", **more: Any) -> str:
    return str(ok(ask(user, room, version, **more))["replacement_room"])


def old_room(user: User, version: str = "11", **requested: Any) -> str:
    return create(user, **{"preset": "private_chat", "room_version": version, **requested})


def test_predecessor_and_tombstone_link_the_rooms(alice: User) -> None:
    old = old_room(alice, creation_content={"type": "m.space", "m.federate": False, "extra": 1})
    last = say(alice, old, "the last words")
    new = upgrade(alice, old)
    assert get_state(alice, new, "m.room.create") == {
        "room_version": "12",
        "predecessor": {"room_id": old, "event_id": last},
        "type": "m.space",
        "m.federate": False,
    }
    tombstone = get_state(alice, old, "m.room.tombstone")
    assert (tombstone["replacement_room"], bool(tombstone["body"])) == (new, True)
    assert get_state(alice, new, "m.room.member", alice.user_id)["membership"] == "join"


@pytest.mark.parametrize(
    ("version", "room_id_has_domain"), [("5", True), ("11", True), ("12", False)]
)
def test_upgrade_to_every_version(alice: User, version: str, room_id_has_domain: bool) -> None:
    new = upgrade(alice, old_room(alice, "6"), version)
    assert new.endswith(":example.org") is room_id_has_domain
    create_event = get_state(alice, new, "m.room.create")
    assert (create_event["room_version"], "creator" in create_event) == (version, version == "5")
    say(alice, new, "salom")


def test_room_settings_are_copied(alice: User) -> None:
    moved: dict[str, Any] = {
        "m.room.name": {"name": "Tea"},
        "m.room.topic": {"topic": "leaves"},
        "m.room.avatar": {"url": "mxc://example.org/cup"},
        "m.room.encryption": {"algorithm": "m.megolm.v1.aes-sha2"},
        "m.room.history_visibility": {"history_visibility": "invited"},
        "m.room.guest_access": {"guest_access": "can_join"},
        "m.room.join_rules": {"join_rule": "knock"},
        "m.room.server_acl": {"allow": ["*"], "deny": ["evil.org"]},
    }
    left: dict[str, Any] = {
        "m.room.pinned_events": {"pinned": ["$x"]},
        "org.example.widget": {"url": "https://example.org"},
    }
    old = old_room(alice)
    for type_, content in (moved | left).items():
        set_state(alice, old, type_, content)
    set_state(alice, old, "m.room.image_pack", {"images": {}}, "cats")
    new = upgrade(alice, old)
    state = {key: event["content"] for key, event in full_state(alice, new).items()}
    assert {type_: state[type_, ""] for type_ in moved} == moved
    assert state["m.room.image_pack", "cats"] == {"images": {}}
    assert not {(type_, "") for type_ in left} & set(state)


def test_bans_are_copied_and_members_are_not(alice: User, bob: User, server: TestServer) -> None:
    carol = server.register("carol")
    old = old_room(alice)
    invite(alice, old, bob)
    join(bob, old)
    invite(alice, old, carol)
    dan = server.register("dan")
    ok(membership(alice, old, "ban", dan, reason="spam"))
    new = upgrade(alice, old)
    members = {
        key: event["content"]
        for (type_, key), event in full_state(alice, new).items()
        if type_ == "m.room.member"
    }
    assert set(members) == {alice.user_id, dan.user_id}
    assert members[dan.user_id] == {"membership": "ban", "reason": "spam"}


def test_many_bans_are_copied(alice: User) -> None:
    old = old_room(alice)
    for number in range(230):
        ok(alice.post(room_path(old, "ban"), {"user_id": f"@spammer{number}:other.org"}))
    new = upgrade(alice, old)
    banned = [
        event
        for (type_, _), event in full_state(alice, new).items()
        if event["content"].get("membership") == "ban"
    ]
    assert len(banned) == 230


def test_aliases_and_the_listing_move(alice: User, bob: User) -> None:
    old = old_room(alice, preset="public_chat", room_alias_name="tea", visibility="public")
    ok(alice.put(f"{V3}/directory/room/{quote('#chai:example.org')}", {"room_id": old}))
    canonical = {"alias": "#tea:example.org", "alt_aliases": ["#chai:example.org"]}
    set_state(alice, old, "m.room.canonical_alias", canonical)
    new = upgrade(alice, old)
    for alias in ("#tea:example.org", "#chai:example.org"):
        assert ok(bob.get(f"{V3}/directory/room/{quote(alias)}"))["room_id"] == new
    assert get_state(alice, new, "m.room.canonical_alias") == canonical
    assert get_state(alice, old, "m.room.canonical_alias") == {}
    assert [room["room_id"] for room in ok(bob.get(f"{V3}/publicRooms"))["chunk"]] == [new]
    assert ok(bob.get(f"{V3}/directory/list/room/{quote(old)}"))["visibility"] == "private"


def test_ordinary_members_cannot_send_to_the_old_room(alice: User, bob: User) -> None:
    old = old_room(alice, preset="public_chat")
    join(bob, old)
    say(bob, old, "before")
    upgrade(alice, old)
    assert refused(
        put_event(bob, old, "m.room.message", {"msgtype": "m.text", "body": "after"})
    ) == (
        403,
        "M_FORBIDDEN",
    )
    assert refused(membership(bob, old, "invite", alice)) == (403, "M_FORBIDDEN")
    levels = get_state(alice, old, "m.room.power_levels")
    assert (levels["events_default"], levels["invite"]) == (50, 50)
    say(alice, old, "moderators may still speak")
    assert messages(bob, old)["chunk"]


def test_levels_are_raised_above_the_default_and_never_lowered(alice: User) -> None:
    levels = {
        "users_default": 60,
        "events_default": 70,
        "invite": 10,
        "users": {alice.user_id: 100},
    }
    old = old_room(alice, power_level_content_override=levels)
    upgrade(alice, old)
    levels = get_state(alice, old, "m.room.power_levels")
    assert (levels["events_default"], levels["invite"]) == (70, 61)


def test_a_moderator_may_upgrade_if_the_power_levels_allow_it(alice: User, bob: User) -> None:
    old = old_room(alice, preset="public_chat")
    join(bob, old)
    assert refused(ask(bob, old)) == (403, "M_FORBIDDEN")
    levels = get_state(alice, old, "m.room.power_levels")
    levels["users"][bob.user_id] = 50
    levels["events"]["m.room.tombstone"] = 50
    set_state(alice, old, "m.room.power_levels", levels)
    new = upgrade(bob, old, "11")
    assert get_state(bob, old, "m.room.tombstone")["replacement_room"] == new
    # in the old room a moderator may not change the levels; the new one has all levels unchanged
    assert get_state(bob, old, "m.room.power_levels") == levels
    assert get_state(bob, new, "m.room.power_levels") == levels
    assert refused(put_state(bob, new, "m.room.server_acl", {"allow": ["*"]})) == (
        403,
        "M_FORBIDDEN",
    )
    join(alice, new)
    set_state(alice, new, "m.room.server_acl", {"allow": ["*"]})


def test_privileged_creators_are_not_in_the_power_levels(alice: User, bob: User) -> None:
    old = old_room(alice)
    levels = get_state(alice, old, "m.room.power_levels")
    levels["users"] |= {bob.user_id: 50, "@carol:other.org": 100}
    set_state(alice, old, "m.room.power_levels", levels)
    new = upgrade(alice, old, additional_creators=[bob.user_id, bob.user_id])
    assert get_state(alice, new, "m.room.create")["additional_creators"] == [bob.user_id]
    moved = get_state(alice, new, "m.room.power_levels")
    assert moved["users"] == {"@carol:other.org": 100}
    assert moved["events"]["m.room.tombstone"] == 150
    newer = upgrade(alice, new)
    assert "additional_creators" not in get_state(alice, newer, "m.room.create")
    assert get_state(alice, newer, "m.room.power_levels") == moved


def test_creators_get_the_highest_level_in_older_versions(alice: User, bob: User) -> None:
    old = create(alice, room_version="12", creation_content={"additional_creators": [bob.user_id]})
    new = upgrade(alice, old, "11", additional_creators=[bob.user_id])
    assert "additional_creators" not in get_state(alice, new, "m.room.create")
    assert get_state(alice, new, "m.room.power_levels")["users"] == {
        alice.user_id: 150,
        bob.user_id: 150,
    }
    assert upgrade(alice, new, "10") != new


def test_unknown_join_rules_are_replaced(alice: User) -> None:
    allow = [{"type": "m.room_membership", "room_id": "!club:example.org"}]
    for rule, version, expected in (
        ("knock", "6", {"join_rule": "invite"}),
        ("restricted", "7", {"join_rule": "invite"}),
        ("knock_restricted", "9", {"join_rule": "restricted", "allow": allow}),
        ("knock_restricted", "10", {"join_rule": "knock_restricted", "allow": allow}),
    ):
        old = old_room(alice)
        set_state(alice, old, "m.room.join_rules", {"join_rule": rule, "allow": allow})
        assert get_state(alice, upgrade(alice, old, version), "m.room.join_rules") == expected


def test_links_of_spaces_move(alice: User, bob: User) -> None:
    space, other = create_space(alice), create_space(bob)
    old = old_room(alice, preset="public_chat")
    add_child(alice, space, old, order="x", suggested=True)
    add_child(bob, other, old)
    join(alice, other)
    set_state(alice, old, "m.space.parent", {"via": ["example.org"], "canonical": True}, space)
    new = upgrade(alice, old)
    assert get_state(alice, space, "m.space.child", new) == {
        "via": ["example.org"],
        "order": "x",
        "suggested": True,
    }
    assert get_state(alice, space, "m.space.child", old) == {}
    assert rooms_below(alice, space) == [space, new]
    assert rooms_below(alice, other) == [other, old]  # a space that alice may not change
    assert get_state(alice, new, "m.space.parent", space) == {
        "via": ["example.org"],
        "canonical": True,
    }


def test_an_upgraded_space_has_its_children(alice: User, bob: User) -> None:
    space = create_space(alice, room_version="11")
    mine, theirs = old_room(alice, preset="public_chat"), old_room(bob, preset="public_chat")
    join(alice, theirs)
    for room, owner in ((mine, alice), (theirs, bob)):
        add_child(alice, space, room, order=room[1])
        set_state(owner, room, "m.space.parent", {"via": ["example.org"]}, space)
    add_child(alice, space, "!gone:example.org")
    set_state(alice, space, "m.space.child", {}, "!gone:example.org")
    new = upgrade(alice, space)
    assert sorted(rooms_below(alice, new)) == sorted([new, mine, theirs])
    assert get_state(alice, new, "m.space.child", mine)["order"] == mine[1]
    assert get_state(alice, new, "m.space.child", "!gone:example.org") is None
    assert get_state(alice, mine, "m.space.parent", new) == {"via": ["example.org"]}
    assert get_state(alice, mine, "m.space.parent", space) == {}
    assert get_state(alice, theirs, "m.space.parent", new) is None


def test_a_repeated_request_returns_the_existing_room(alice: User) -> None:
    old = old_room(alice, preset="public_chat")
    new = upgrade(alice, old)
    space = create_space(alice)
    add_child(alice, space, old)
    assert upgrade(alice, old) == new
    assert rooms_below(alice, space) == [space, new]
    repeated = upgrade(alice, old, "11")
    assert repeated != new
    assert get_state(alice, old, "m.room.tombstone")["replacement_room"] == repeated


def test_concurrent_requests_make_one_room(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig
) -> None:
    turns = Interleaving()
    alice = TestServer(tmp_path, turns.open(database_config)).register("alice")
    old = old_room(alice, preset="public_chat", room_alias_name="tea")
    space = create_space(alice)
    add_child(alice, space, old)
    turns.begin(Random(1))
    asked = [
        alice.start("POST", room_path(old, "upgrade"), {"new_version": "12"}) for _ in range(3)
    ]
    turns.end()
    (new,) = {ok(each.answer)["replacement_room"] for each in asked}
    assert get_state(alice, old, "m.room.tombstone")["replacement_room"] == new
    assert ok(alice.get(f"{V3}/directory/room/{quote('#tea:example.org')}"))["room_id"] == new
    assert rooms_below(alice, space) == [space, new]
    assert set(ok(alice.get(f"{V3}/joined_rooms"))["joined_rooms"]) == {old, space, new}


def settings_of(user: User, room: str) -> tuple[Any, Any]:
    path = f"{V3}/user/{quote(user.user_id)}"
    direct = user.get(f"{path}/account_data/m.direct")
    return ok(user.get(f"{path}/rooms/{quote(room)}/tags"))[
        "tags"
    ], direct.json if direct.status == 200 else None


def test_personal_settings_are_copied_on_join(alice: User, bob: User) -> None:
    old = old_room(alice, preset="public_chat")
    join(bob, old)
    rules = f"{V3}/pushrules/global"
    for user in (alice, bob):
        path = f"{V3}/user/{quote(user.user_id)}"
        ok(user.put(f"{path}/rooms/{quote(old)}/tags/m.favourite", {"order": 0.5}))
        ok(user.put(f"{path}/account_data/m.direct", {"@carol:other.org": [old], "x": 5}))
        ok(user.put(f"{rules}/room/{quote(old)}", {"actions": []}))
        condition = {"kind": "event_match", "key": "room_id", "pattern": old}
        ok(user.put(f"{rules}/override/{quote(old)}", {"actions": [], "conditions": [condition]}))
    new = upgrade(alice, old)
    assert settings_of(bob, new)[0] == {}
    join(bob, new)
    for user in (alice, bob):
        assert settings_of(user, new) == (
            {"m.favourite": {"order": 0.5}},
            {"@carol:other.org": [old, new], "x": 5},
        )
        assert ok(user.get(f"{rules}/room/{quote(new)}"))["actions"] == []
        override = ok(user.get(f"{rules}/override/{quote(new)}"))
        assert override["conditions"] == [{"kind": "event_match", "key": "room_id", "pattern": new}]
    # settings that the new room got since then stay
    ok(bob.delete(f"{V3}/user/{quote(bob.user_id)}/rooms/{quote(new)}/tags/m.favourite"))
    leave(bob, new)
    ok(put_state(bob, new, "m.room.member", {"membership": "join"}, bob.user_id))
    assert settings_of(bob, new)[0] == {}


def test_personal_settings_are_copied_on_a_join_by_state_event(alice: User, bob: User) -> None:
    old = old_room(alice, preset="public_chat")
    join(bob, old)
    ok(bob.put(f"{V3}/user/{quote(bob.user_id)}/rooms/{quote(old)}/tags/u.work", {}))
    new = upgrade(alice, old)
    ok(put_state(bob, new, "m.room.member", {"membership": "join"}, bob.user_id))
    assert settings_of(bob, new)[0] == {"u.work": {}}


def test_a_false_predecessor_gets_no_personal_settings(alice: User, bob: User) -> None:
    mine = old_room(bob)
    ok(bob.put(f"{V3}/user/{quote(bob.user_id)}/rooms/{quote(mine)}/tags/m.favourite", {}))
    claim = create(alice, preset="public_chat", creation_content={"predecessor": {"room_id": mine}})
    join(bob, claim)
    assert settings_of(bob, claim)[0] == {}


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({"new_version": "99"}, "M_UNSUPPORTED_ROOM_VERSION"),
        ({"new_version": 12}, "M_BAD_JSON"),
        ({}, "M_BAD_JSON"),
        ({"new_version": "12", "additional_creators": ["nobody"]}, "M_INVALID_PARAM"),
        ({"new_version": "12", "additional_creators": "@bob:example.org"}, "M_BAD_JSON"),
    ],
)
def test_invalid_requests_are_refused(alice: User, body: dict[str, Any], errcode: str) -> None:
    old = old_room(alice)
    assert refused(alice.post(room_path(old, "upgrade"), body)) == (400, errcode)
    assert get_state(alice, old, "m.room.tombstone") is None


def test_non_members_cannot_upgrade(alice: User, bob: User) -> None:
    old = old_room(alice, preset="public_chat")
    assert refused(ask(bob, old)) == (403, "M_FORBIDDEN")
    assert refused(ask(bob, "!none:example.org")) == (403, "M_FORBIDDEN")


def test_invalid_state_does_not_prevent_an_upgrade(alice: User) -> None:
    old = old_room(alice, "5", power_level_content_override={"users": {alice.user_id: 100}})
    set_state(alice, old, "m.room.topic", {"topic": "warm", "degrees": 36.6})
    set_state(alice, old, "m.room.avatar", {})
    set_state(alice, old, "m.room.canonical_alias", {})
    new = upgrade(alice, old)
    assert get_state(alice, new, "m.room.topic") is None
    assert get_state(alice, new, "m.room.avatar") is None


def test_a_user_of_another_server_follows_an_upgrade_with_their_settings(network: Network) -> None:
    alice, bob = two_users(network)
    network.start_sending()
    old = old_room(alice, preset="public_chat")
    ok(join_via(bob, old, NORTH))
    tags = f"{V3}/user/{quote(bob.user_id)}/rooms/{{}}/tags"
    ok(bob.put(tags.format(quote(old)) + "/m.favourite", {"order": 0.5}))
    ok(alice.post(room_path(old, "ban"), {"user_id": "@spammer:west.example"}))
    network.settle()
    network.log.clear()
    new = upgrade(alice, old)
    network.settle()
    assert get_state(bob, old, "m.room.tombstone")["replacement_room"] == new
    # servers of users who are banned from the beginning are not notified of the new room
    assert {to for _, to, _, _ in network.log} == {SOUTH}

    ok(join_via(bob, new, NORTH))

    assert ok(bob.get(tags.format(quote(new))))["tags"] == {"m.favourite": {"order": 0.5}}
