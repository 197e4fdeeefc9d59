"""Space hierarchies of rooms on several servers."""

from collections.abc import Sequence
from typing import Any

import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.ids import ServerName
from tests.helpers.network import Network, count_requests
from tests.helpers.remote_membership import NORTH, SOUTH, join_via
from tests.helpers.room_actions import create, invite, ok, set_state
from tests.helpers.server import User
from tests.helpers.spaces import hierarchy, rooms_below

SPACE = {"type": "m.space"}


@pytest.fixture
def alice(network: Network) -> User:
    return network.add(NORTH).register("alice")


@pytest.fixture
def bob(network: Network) -> User:
    return network.add(SOUTH).register("bob")


def space_of(
    user: User, *children: str, via: Sequence[str] = (NORTH, SOUTH), **requested: Any
) -> str:
    """A public space with these children, which are on the other servers or this one."""
    space = create(user, **{"preset": "public_chat", "creation_content": SPACE, **requested})
    for number, child in enumerate(children):
        link = {"via": list(via), "order": str(number)}
        set_state(user, space, "m.space.child", link, child)
    return space


def names_below(user: User, room_id: str, **query: object) -> list[str]:
    """Return the names of the rooms in a space, the root first."""
    return [
        room.get("name", room["room_id"]) for room in hierarchy(user, room_id, **query)["rooms"]
    ]


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
        count_requests(network, word="/hierarchy/") == 1
    )  # what it told of the children is believed, and what it hid is not asked for again
    assert rooms_below(bob, root) == [root, far, leaf, near]
    assert count_requests(network, word="/hierarchy/") == 1
    assert rooms_below(alice, far) == [far, leaf, secret]
    network.clock.advance(301)
    assert rooms_below(bob, root) == [root, far, leaf, near]
    assert count_requests(network, word="/hierarchy/") == 2


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

    def forge(_: ServerName, request: WireRequest) -> WireResponse | None:
        return WireResponse(200, {}, answers[-1]) if "/hierarchy/" in request.uri else None

    network.interceptors.append(forge)
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


def test_private_rooms_are_hidden_and_their_server_is_not_asked_again(
    network: Network, alice: User, bob: User
) -> None:
    garden = create(alice, name="Garden", preset="public_chat")
    cellar = create(alice, name="Cellar", preset="private_chat")
    attic = create(alice, name="Attic", preset="public_chat")
    upstairs = space_of(alice, attic, name="Upstairs", via=[NORTH])
    house = space_of(alice, garden, cellar, upstairs, name="House", via=[NORTH])
    ok(join_via(bob, house, NORTH))
    town = space_of(bob, house, name="Town", via=[SOUTH])

    assert names_below(bob, house) == ["House", "Garden", "Upstairs", "Attic"]
    assert names_below(bob, town, max_depth=1) == ["Town", "House"]
    requests = len(network.log)
    assert names_below(bob, house) == ["House", "Garden", "Upstairs", "Attic"]
    assert len(network.log) == requests


def test_an_unreachable_server_hides_only_its_rooms(
    network: Network, alice: User, bob: User
) -> None:
    garden = create(alice, name="Garden", preset="public_chat")
    shed = create(bob, name="Shed", preset="public_chat")
    house = space_of(bob, garden, shed, name="House", via=[NORTH])
    network.cut(NORTH, SOUTH)

    assert names_below(bob, house) == ["House", "Shed"]

    network.mend(NORTH, SOUTH)
    network.clock.advance(5 * 60 + 1)
    assert names_below(bob, house) == ["House", "Garden", "Shed"]


def test_a_remote_restricted_room_is_shown_to_users_who_may_join(alice: User, bob: User) -> None:
    house = space_of(alice, name="House")
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": house}]}
    kitchen = create(
        alice,
        name="Kitchen",
        initial_state=[{"type": "m.room.join_rules", "content": rule}],
    )
    set_state(alice, house, "m.space.child", {"via": [NORTH]}, kitchen)
    ok(join_via(bob, house, NORTH))
    assert names_below(bob, house) == ["House", "Kitchen"]
