"""Requests about membership in rooms of other servers."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from tests.helpers.http import Answer
from tests.helpers.room_actions import V3, ok, room_path
from tests.helpers.server import User

NORTH, SOUTH, WEST = "north.example", "south.example", "west.example"


def join_via(user: User, room: str, *servers: str, **body: Any) -> Answer:
    """Join a room by ID or alias through one of the servers."""
    return user.post(_path("join", room, servers), body)


def knock_via(user: User, room: str, *servers: str, **body: Any) -> Answer:
    """Knock on a room through one of the servers."""
    return user.post(_path("knock", room, servers), body)


def members(user: User, room_id: str) -> dict[str, str]:
    """Return the membership of each user, as `/members` shows it to this user."""
    chunk = ok(user.get(room_path(room_id, "members")))["chunk"]
    return {event["state_key"]: event["content"]["membership"] for event in chunk}


def rooms_in_sync(user: User, section: str) -> dict[str, Any]:
    """Return the rooms of a section of an initial `/sync` with `include_leave`."""
    wanted = quote('{"room":{"include_leave":true}}')
    rooms: dict[str, Any] = ok(user.get(f"{V3}/sync?filter={wanted}")).get("rooms", {})
    found: dict[str, Any] = rooms.get(section, {})
    return found


def is_known(user: User, room_id: str) -> bool:
    """Whether an initial `/sync` has the room in any section."""
    rooms = ok(user.get(f"{V3}/sync")).get("rooms", {})
    return any(room_id in section for section in rooms.values())


def _path(action: str, room: str, servers: Sequence[str]) -> str:
    path = f"{V3}/{action}/{quote(room, safe='')}"
    return f"{path}?{urlencode([('via', server) for server in servers])}" if servers else path
