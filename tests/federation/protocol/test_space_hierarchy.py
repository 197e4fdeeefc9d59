"""Spaces as values: order of children, and what other servers tell. spec:
server-server-api#spaces"""

from typing import Any

import pytest

from federation.protocol.errors import BadJson
from federation.protocol.ids import RoomID
from federation.protocol.space_hierarchy import (
    parse_hierarchy,
    place_of_child,
    read_order,
    read_via,
)

SPACE = RoomID("!space:b.test")
CHILD = RoomID("!child:b.test")


def room_entry(room_id: str, **more: Any) -> dict[str, Any]:
    return {
        "room_id": room_id,
        "num_joined_members": 3,
        "world_readable": True,
        "guest_can_join": False,
        **more,
    }


def link(child: str, ts: object = 5, **content: Any) -> dict[str, Any]:
    return {
        "type": "m.space.child",
        "state_key": child,
        "sender": "@alice:b.test",
        "content": {"via": ["b.test"], **content},
        "origin_server_ts": ts,
    }


def test_the_example_of_the_specification_is_ordered() -> None:
    children = [
        (" ", 1640341000000, "!b:example.org"),
        ("aaaa", 1640141000000, "!a:example.org"),
        ("first", 1640841000000, "!c:example.org"),
        (None, 1640641000000, "!e:example.org"),
        (None, 1640741000000, "!d:example.org"),
    ]
    assert sorted(children, key=lambda each: place_of_child(*each)) == children
    assert (
        sorted([*children[3:], *children[:3]], key=lambda each: place_of_child(*each)) == children
    )


@pytest.mark.parametrize("order", ["", "x" * 51, "ö", "\n", 1, None, ["a"]])
def test_an_invalid_order_is_ignored(order: object) -> None:
    assert read_order({"order": order}) is None


def test_invalid_server_names_are_omitted() -> None:
    assert read_via({"via": ["a.test", "no server", 7, *["b.test"] * 20]}) == [
        "a.test",
        *["b.test"] * 7,
    ]
    assert read_via({"via": "a.test"}) == read_via({}) == []


def test_a_response_is_parsed() -> None:
    answer = {
        "room": room_entry(
            SPACE, room_type="m.space", children_state=[link("!z:b.test"), link(CHILD, order="a")]
        ),
        "children": [
            room_entry(CHILD, name="Child", allowed_room_ids=["!a:b.test", 1], children_state=[])
        ],
        "inaccessible_children": ["!z:b.test", "nonsense", 4],
    }
    read = parse_hierarchy(SPACE, answer)
    assert [event["state_key"] for event in read.room.children_state or ()] == [CHILD, "!z:b.test"]
    assert read.children[CHILD].summary == room_entry(
        CHILD, name="Child", allowed_room_ids=["!a:b.test"]
    )
    assert read.inaccessible == {"!z:b.test"}


def test_malformed_entries_are_omitted() -> None:
    bad_links: list[Any] = [
        7,
        link("nonsense"),
        link("!a:b.test", ts="5"),
        link("!b:b.test", via="b.test"),
        link("!c:b.test") | {"type": "m.room.name"},
        link("!d:b.test") | {"sender": "nobody"},
        link("!e:b.test") | {"content": []},
    ]
    answer = {
        "room": room_entry(
            SPACE,
            name=5,
            num_joined_members=-1,
            canonical_alias="x",
            children_state=bad_links,
            extra="x",
        ),
        "children": [None, {}, {"room_id": 5}, room_entry("nonsense")],
    }
    read = parse_hierarchy(SPACE, answer)
    assert read.room.summary == room_entry(SPACE) | {"num_joined_members": 0}
    assert (read.room.children_state, read.children, read.inaccessible) == ((), {}, frozenset())


@pytest.mark.parametrize(
    "answer", [{}, {"room": None}, {"room": room_entry(CHILD)}, {"room": {"name": "x"}}]
)
def test_a_response_about_another_room_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(BadJson):
        parse_hierarchy(SPACE, answer)
