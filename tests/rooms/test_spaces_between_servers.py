"""Space hierarchies and upgrades of rooms on several servers."""

from typing import Any
from urllib.parse import quote

import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.ids import ServerName
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, join_via
from tests.helpers.room_actions import create, get_state, invite, ok, refused, room_path, set_state
from tests.helpers.server import User
from tests.helpers.spaces import hierarchy, rooms_below, summary_path

SPACE = {"type": "m.space"}


@pytest.fixture
def alice(network: Network) -> User:
    return network.add(NORTH).register("alice")


@pytest.fixture
def bob(network: Network) -> User:
    return network.add(SOUTH).register("bob")


def space_of(user: User, *children: str, **requested: Any) -> str:
    """A public space with these children, which are on the other servers or this one."""
    space = create(user, **{"preset": "public_chat", "creation_content": SPACE, **requested})
    for number, child in enumerate(children):
        set_state(
            user, space, "m.space.child", {"via": [NORTH, SOUTH], "order": str(number)}, child
        )
    return space


def asked(network: Network) -> int:
    return len([uri for _, _, _, uri in network.log if "/hierarchy/" in uri])


def test_a_hierarchy_continues_on_the_other_server(
    network: Network, alice: User, bob: User
) -> None:
    leaf, secret = (
        create(alice, preset="public_chat", name="Leaf"),
        create(alice, preset="private_chat"),
    )
    far = space_of(alice, leaf, secret, name="Far")
    near = create(bob, preset="public_chat")
    root = space_of(bob, far, near)

    rooms = hierarchy(bob, root)["rooms"]

    assert [room["room_id"] for room in rooms] == [root, far, leaf, near]
    assert [room.get("name") for room in rooms] == [None, "Far", "Leaf", None]
    assert [link["state_key"] for link in rooms[1]["children_state"]] == [leaf, secret]
    assert rooms[2]["children_state"] == []
    assert (
        asked(network) == 1
    )  # what it told of the children is believed, and what it hid is not asked for again
    assert rooms_below(bob, root) == [root, far, leaf, near]
    assert asked(network) == 1
    assert rooms_below(alice, far) == [far, leaf, secret]
    network.clock.advance(301)
    assert rooms_below(bob, root) == [root, far, leaf, near]
    assert asked(network) == 2


def test_members_of_a_remote_room_see_more(network: Network, alice: User, bob: User) -> None:
    club, secret = create(alice, preset="public_chat"), create(alice, preset="private_chat")
    allow = [{"type": "m.room_membership", "room_id": club}]
    inner = create(
        alice,
        initial_state=[
            {"type": "m.room.join_rules", "content": {"join_rule": "restricted", "allow": allow}}
        ],
    )
    far = space_of(alice, secret, inner)
    root = space_of(bob, far)
    assert rooms_below(bob, root) == [root, far]
    ok(join_via(bob, club, NORTH))
    network.clock.advance(301)
    assert rooms_below(bob, root) == [root, far, inner]
    invite(alice, secret, bob)
    network.clock.advance(301)
    assert rooms_below(bob, root) == [root, far, secret, inner]


def test_a_server_that_does_not_answer_hides_its_rooms(
    network: Network, alice: User, bob: User
) -> None:
    far, near = space_of(alice), create(bob, preset="public_chat")
    root = space_of(bob, far, near)
    network.cut(NORTH, SOUTH)
    assert rooms_below(bob, root) == [root, near]
    network.mend(NORTH, SOUTH)
    assert rooms_below(bob, root) == [root, near]
    network.clock.advance(301)
    assert rooms_below(bob, root) == [root, far, near]


def test_false_responses_of_a_server_are_ignored(network: Network, alice: User, bob: User) -> None:
    far = space_of(alice)
    root = space_of(bob, far)
    answers = [
        b"[]",
        b'{"room": {}}',
        b'{"room": {"room_id": "!other:north.example"}}',
        b"nonsense",
    ]

    def lie(_: ServerName, request: WireRequest) -> WireResponse | None:
        return WireResponse(200, {}, answers[-1]) if "/hierarchy/" in request.uri else None

    network.interceptors.append(lie)
    while answers:
        assert rooms_below(bob, root) == [root]
        network.clock.advance(301)
        answers.pop()
    network.interceptors.clear()
    assert rooms_below(bob, root) == [root, far]


def test_the_server_acl_of_a_room_applies_to_hierarchies(alice: User, bob: User) -> None:
    far = space_of(alice)
    root = space_of(bob, far)
    set_state(alice, far, "m.room.server_acl", {"allow": ["*"], "deny": [SOUTH]})
    assert rooms_below(bob, root) == [root]


def test_the_summary_of_a_remote_room_is_shown(alice: User, bob: User) -> None:
    room = create(alice, preset="public_chat", name="Tea", room_alias_name="tea")
    secret = create(alice, preset="private_chat")

    received = ok(bob.get(summary_path(room, via=[NORTH])))

    assert (received["room_id"], received["name"], received["membership"]) == (room, "Tea", "leave")
    assert ok(bob.get(summary_path(f"#tea:{NORTH}")))["room_id"] == room
    assert ok(bob.server.get(summary_path(room, via=[NORTH])))["name"] == "Tea"
    assert refused(bob.get(summary_path(secret, via=[NORTH]))) == (404, "M_NOT_FOUND")
    assert refused(bob.get(summary_path("!none:nowhere.example"))) == (404, "M_NOT_FOUND")


def test_a_remote_upgrade_is_followed_with_personal_settings(
    network: Network, alice: User, bob: User
) -> None:
    network.start_sending()
    old = create(alice, preset="public_chat", room_version="11")
    ok(join_via(bob, old, NORTH))
    tags = f"/_matrix/client/v3/user/{quote(bob.user_id)}/rooms/{{}}/tags"
    ok(bob.put(tags.format(quote(old)) + "/m.favourite", {"order": 0.5}))
    ok(alice.post(room_path(old, "ban"), {"user_id": "@spammer:west.example"}))
    network.settle()
    network.log.clear()
    new = str(ok(alice.post(room_path(old, "upgrade"), {"new_version": "12"}))["replacement_room"])
    network.settle()
    assert get_state(bob, old, "m.room.tombstone")["replacement_room"] == new
    assert {to for _, to, _, _ in network.log} == {
        SOUTH
    }  # who is banned from the beginning is not told of the room

    ok(join_via(bob, new, NORTH))

    assert ok(bob.get(tags.format(quote(new))))["tags"] == {"m.favourite": {"order": 0.5}}
