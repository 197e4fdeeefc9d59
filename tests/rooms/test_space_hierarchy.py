"""Space hierarchies. spec: client-server-api#spaces"""

import pytest

from tests.helpers.room_actions import (
    create,
    invite,
    join,
    membership,
    ok,
    redact,
    refused,
    set_state,
)
from tests.helpers.server import TestServer, User
from tests.helpers.spaces import (
    VIA,
    add_child,
    create_space,
    every_page,
    hierarchy,
    hierarchy_path,
    rooms_below,
)


def public(user: User, name: str) -> str:
    return create(user, preset="public_chat", name=name)


def test_a_space_shows_itself_and_its_children(alice: User, bob: User) -> None:
    space, room = create_space(alice, "Town"), public(alice, "Square")
    join(bob, room)
    event_id = add_child(alice, space, room, suggested=True)
    answer = hierarchy(bob, space)
    top, child = answer["rooms"]
    assert "next_batch" not in answer
    assert (top["room_id"], top["name"], top["room_type"]) == (space, "Town", "m.space")
    (stripped,) = top["children_state"]
    assert stripped.pop("origin_server_ts") > 0
    assert stripped == {
        "type": "m.space.child",
        "state_key": room,
        "sender": alice.user_id,
        "content": {"via": VIA, "suggested": True},
    }
    assert child == {
        "room_id": room,
        "name": "Square",
        "num_joined_members": 2,
        "world_readable": False,
        "guest_can_join": False,
        "join_rule": "public",
        "room_version": "12",
        "children_state": [],
    }
    ok(redact(alice, space, event_id))
    (top,) = hierarchy(bob, space)["rooms"]
    assert top["children_state"] == []


def test_children_are_in_the_specified_order(server: TestServer, alice: User) -> None:
    space = create_space(alice)
    rooms = [public(alice, name) for name in "abcdef"]
    orders = ["second", None, " first", None, "x" * 51, 7]
    for room, order in zip(rooms, orders, strict=True):
        server.clock.advance(1)
        add_child(alice, space, room, **({} if order is None else {"order": order}))
    a, b, c, d, e, f = rooms
    assert rooms_below(alice, space) == [space, c, a, b, d, e, f]
    (top, *_) = hierarchy(alice, space)["rooms"]
    assert [event["state_key"] for event in top["children_state"]] == [c, a, b, d, e, f]


def test_the_walk_is_depth_first(alice: User) -> None:
    town, street, house, park = (
        create_space(alice),
        create_space(alice),
        public(alice, "h"),
        public(alice, "p"),
    )
    add_child(alice, town, street, order="1")
    add_child(alice, town, park, order="2")
    add_child(alice, street, house)
    assert rooms_below(alice, town) == [town, street, house, park]
    assert rooms_below(alice, town, max_depth=1) == [town, street, park]
    assert rooms_below(alice, town, max_depth=0) == [town]


def test_loops_end_and_each_room_is_shown_once(alice: User) -> None:
    one, two, room = create_space(alice), create_space(alice), public(alice, "r")
    add_child(alice, one, two, order="1")
    add_child(alice, one, room, order="2")
    add_child(alice, two, one, order="1")
    add_child(alice, two, two, order="2")
    add_child(alice, two, room, order="3")
    assert rooms_below(alice, one) == [one, two, room]
    assert every_page(alice, one, 1) == [[one], [two], [room]]


def test_only_suggested_children_are_shown_on_request(alice: User) -> None:
    space, street, room, other = (
        create_space(alice),
        create_space(alice),
        public(alice, "r"),
        public(alice, "o"),
    )
    add_child(alice, space, street, suggested=True)
    add_child(alice, space, other)
    add_child(alice, street, room, suggested="yes")
    answer = hierarchy(alice, space, suggested_only="true")
    assert [each["room_id"] for each in answer["rooms"]] == [space, street]
    assert [event["state_key"] for event in answer["rooms"][0]["children_state"]] == [street]
    assert answer["rooms"][1]["children_state"] == []


def test_a_child_without_via_is_ignored(alice: User) -> None:
    space, room = create_space(alice), public(alice, "r")
    for content in ({}, {"via": "example.org"}, {"via": None}):
        set_state(alice, space, "m.space.child", content, room)
        assert rooms_below(alice, space) == [space]
    set_state(alice, space, "m.space.child", {"via": VIA}, "not a room")
    assert rooms_below(alice, space) == [space]
    add_child(alice, space, room)
    assert rooms_below(alice, space) == [space, room]
    set_state(alice, space, "m.space.child", {}, room)
    assert rooms_below(alice, space) == [space]


def test_a_room_that_is_not_a_space_has_no_children(alice: User) -> None:
    room, other = public(alice, "r"), public(alice, "o")
    add_child(alice, room, other)
    (top,) = hierarchy(alice, room)["rooms"]
    assert (top["room_id"], top["children_state"]) == (room, [])


def test_only_visible_rooms_are_shown(alice: User, bob: User) -> None:
    space = create_space(alice)
    open_room, secret = public(alice, "open"), create(alice, preset="private_chat", name="secret")
    invited, banned = create(alice, preset="private_chat"), public(alice, "banned")
    readable = create(
        alice,
        initial_state=[
            {
                "type": "m.room.history_visibility",
                "content": {"history_visibility": "world_readable"},
            }
        ],
    )
    knock = create(
        alice, initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}]
    )
    allow = [{"type": "m.room_membership", "room_id": space}]
    members_only = create(
        alice,
        initial_state=[
            {"type": "m.room.join_rules", "content": {"join_rule": "restricted", "allow": allow}}
        ],
    )
    rooms = [
        open_room,
        secret,
        invited,
        banned,
        readable,
        knock,
        members_only,
        "!unknown:example.org",
    ]
    for number, room in enumerate(rooms):
        add_child(alice, space, room, order=str(number))
    invite(alice, invited, bob)
    ok(membership(alice, banned, "ban", bob))
    assert rooms_below(alice, space) == [space, *rooms[:-1]]
    assert rooms_below(bob, space) == [space, open_room, invited, readable, knock]
    join(bob, space)
    assert rooms_below(bob, space) == [space, open_room, invited, readable, knock, members_only]


def test_rooms_below_a_hidden_space_are_hidden(alice: User, bob: User) -> None:
    space, hidden, room = (
        create_space(alice),
        create_space(alice, preset="private_chat"),
        public(alice, "r"),
    )
    add_child(alice, space, hidden)
    add_child(alice, hidden, room)
    assert rooms_below(bob, space) == [space]


def test_an_invisible_root_is_refused(server: TestServer, alice: User, bob: User) -> None:
    secret = create_space(alice, preset="private_chat")
    assert refused(bob.get(hierarchy_path(secret))) == (403, "M_FORBIDDEN")
    assert refused(bob.get(hierarchy_path("!none:example.org"))) == (403, "M_FORBIDDEN")
    closed = create_space(alice)
    ok(membership(alice, closed, "ban", bob))
    assert refused(bob.get(hierarchy_path(closed))) == (403, "M_FORBIDDEN")
    assert refused(server.get(hierarchy_path(closed))) == (401, "M_MISSING_TOKEN")


def test_the_hierarchy_is_paged(alice: User) -> None:
    town = create_space(alice)
    expected = [town]
    for number in range(3):
        street = create_space(alice)
        add_child(alice, town, street, order=str(number))
        expected.append(street)
        for house in range(2):
            room = public(alice, "house")
            add_child(alice, street, room, order=str(house))
            expected.append(room)
    for limit in (1, 3, 10, 99):
        pages = every_page(alice, town, limit)
        assert [room for page in pages for room in page] == expected
        assert all(len(page) == limit for page in pages[:-1])


def test_pages_continue_correctly_when_rooms_are_added_or_removed(alice: User) -> None:
    space = create_space(alice)
    a, b, c, d, new = (public(alice, name) for name in "abcdn")
    for order, room in zip("2345", (a, b, c, d), strict=True):
        add_child(alice, space, room, order=order)
    first = hierarchy(alice, space, limit=3)
    assert [room["room_id"] for room in first["rooms"]] == [space, a, b]
    add_child(alice, space, new, order="1")
    assert rooms_below(alice, space, limit=3, from_=first["next_batch"]) == [c, d]
    set_state(alice, space, "m.space.child", {}, new)
    set_state(alice, space, "m.space.child", {}, b)
    assert rooms_below(alice, space, limit=3, from_=first["next_batch"]) == [d]


def test_parameters_cannot_change_between_pages(alice: User) -> None:
    space = create_space(alice)
    add_child(alice, space, public(alice, "r"))
    token = hierarchy(alice, space, limit=1, max_depth=3)["next_batch"]
    assert rooms_below(alice, space, limit=1, max_depth=3, from_=token) != [space]
    for change in ({"max_depth": 2}, {}, {"max_depth": 3, "suggested_only": "true"}):
        assert refused(alice.get(hierarchy_path(space, from_=token, **change))) == (
            400,
            "M_INVALID_PARAM",
        )


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": -1},
        {"limit": "x"},
        {"max_depth": -1},
        {"suggested_only": "maybe"},
        {"from_": "x"},
    ],
)
def test_invalid_requests_are_refused(alice: User, query: dict[str, object]) -> None:
    space = create_space(alice)
    assert refused(alice.get(hierarchy_path(space, **query))) == (400, "M_INVALID_PARAM")


def test_the_unstable_path_works(alice: User) -> None:
    space = create_space(alice)
    path = hierarchy_path(space).replace("/v1/", "/unstable/org.matrix.msc2946/")
    assert ok(alice.get(path)) == hierarchy(alice, space)
