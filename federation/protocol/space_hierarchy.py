"""Reads m.space.child and m.space.parent events, defines the order of a space's children, and
parses the space hierarchies that other servers send.

spec: client-server-api#spaces, server-server-api#spaces
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from federation.protocol.errors import BadJson
from federation.protocol.ids import (
    RoomID,
    ServerName,
    is_room_alias,
    is_room_id,
    is_server_name,
    is_user_id,
)

CHILD: Final = "m.space.child"
PARENT: Final = "m.space.parent"
SPACE: Final = "m.space"
MAX_VIA: Final = 10
"""Servers that are used, or passed on, of those that an event names."""
MAX_REMOTE_CHILDREN: Final = 1000
"""Children of a space that are taken from another server's answer."""

_ORDER: Final = re.compile(r"[\x20-\x7e]{1,50}")
_TEXTS: Final = (
    "name",
    "topic",
    "avatar_url",
    "join_rule",
    "room_type",
    "encryption",
    "room_version",
)
_LARGEST_COUNT: Final = 2**53 - 1


def read_via(content: Mapping[str, Any]) -> list[ServerName]:
    """The servers to join by; without any there is no link to a child or parent."""
    via = content.get("via")
    names = via[:MAX_VIA] if isinstance(via, list) else []
    return [ServerName(name) for name in names if isinstance(name, str) and is_server_name(name)]


def is_link(content: Mapping[str, Any]) -> bool:
    """Whether the content of an m.space.child or m.space.parent makes one. spec:
    client-server-api#mspacechild"""
    return isinstance(content.get("via"), list)


def read_order(content: Mapping[str, Any]) -> str | None:
    """The `order` of a child, None where there is none that counts."""
    order = content.get("order")
    return order if isinstance(order, str) and _ORDER.fullmatch(order) else None


def is_suggested(content: Mapping[str, Any]) -> bool:
    """Whether the space suggests the child."""
    return content.get("suggested") is True


def place_of_child(
    order: str | None, origin_server_ts: int, room_id: str
) -> tuple[bool, str, int, str]:
    """Return the sort key of a child.

    spec: client-server-api#ordering-of-children-within-a-space
    """
    return order is None, order or "", origin_server_ts, room_id


class RemoteRoom(msgspec.Struct, frozen=True):
    """A room as described by another server."""

    summary: Mapping[str, Any]
    """As clients get it, without `children_state`."""
    children_state: tuple[Mapping[str, Any], ...] | None
    """Its m.space.child events, stripped, in order. None if the answer does not contain them."""


class RemoteHierarchy(msgspec.Struct, frozen=True):
    """A space as described by another server."""

    room: RemoteRoom
    children: Mapping[RoomID, RemoteRoom]
    inaccessible: frozenset[RoomID]
    """Children that nobody of this server could look at or join, wherever one asks."""


def parse_hierarchy(room_id: RoomID, answer: Mapping[str, Any]) -> RemoteHierarchy:
    """Another server's answer about that room; what is malformed in it is left out. Raises
    `BadJson`.

    spec: server-server-api#get_matrixfederationv1hierarchyroomid
    """
    room = _parse_room(answer.get("room"))
    if room is None or room.summary["room_id"] != room_id:
        raise BadJson("The answer is not about the room that was asked for")
    listed, hidden = answer.get("children"), answer.get("inaccessible_children")
    children = (
        [_parse_room(entry) for entry in listed[:MAX_REMOTE_CHILDREN]]
        if isinstance(listed, list)
        else []
    )
    inaccessible = hidden[:MAX_REMOTE_CHILDREN] if isinstance(hidden, list) else []
    return RemoteHierarchy(
        room if room.children_state is not None else RemoteRoom(room.summary, ()),
        {child.summary["room_id"]: child for child in children if child is not None},
        frozenset(
            RoomID(name) for name in inaccessible if isinstance(name, str) and is_room_id(name)
        ),
    )


def _parse_room(entry: object) -> RemoteRoom | None:
    if not isinstance(entry, Mapping):
        return None
    room_id, joined = entry.get("room_id"), entry.get("num_joined_members")
    if not isinstance(room_id, str) or not is_room_id(room_id):
        return None
    summary: dict[str, Any] = {
        "room_id": RoomID(room_id),
        "num_joined_members": joined
        if type(joined) is int and 0 <= joined <= _LARGEST_COUNT
        else 0,
        "world_readable": entry.get("world_readable") is True,
        "guest_can_join": entry.get("guest_can_join") is True,
    }
    summary |= {name: value for name in _TEXTS if isinstance(value := entry.get(name), str)}
    alias, allowed = entry.get("canonical_alias"), entry.get("allowed_room_ids")
    if isinstance(alias, str) and is_room_alias(alias):
        summary["canonical_alias"] = alias
    if isinstance(allowed, list):
        summary["allowed_room_ids"] = [
            name for name in allowed[:50] if isinstance(name, str) and is_room_id(name)
        ]
    return RemoteRoom(summary, _parse_children(entry.get("children_state")))


def _parse_children(entries: object) -> tuple[Mapping[str, Any], ...] | None:
    if not isinstance(entries, list):
        return None
    found: dict[str, tuple[tuple[bool, str, int, str], Mapping[str, Any]]] = {}
    for entry in entries[:MAX_REMOTE_CHILDREN]:
        if not isinstance(entry, Mapping):
            continue
        child, sender, content, ts = (
            entry.get(key) for key in ("state_key", "sender", "content", "origin_server_ts")
        )
        if (
            entry.get("type") == CHILD
            and isinstance(child, str)
            and is_room_id(child)
            and isinstance(sender, str)
            and is_user_id(sender)
            and isinstance(content, Mapping)
            and is_link(content)
            and type(ts) is int
        ):
            stripped = {
                "type": CHILD,
                "state_key": child,
                "sender": sender,
                "content": content,
                "origin_server_ts": ts,
            }
            found[child] = place_of_child(read_order(content), ts, child), stripped
    return tuple(stripped for _, stripped in sorted(found.values(), key=lambda each: each[0]))
