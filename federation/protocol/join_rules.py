"""Interprets a room's join rule: the rooms whose members may join, and whether users may knock.

Room summaries, restricted joins and room upgrades use this module.
It does not decide whether an event is allowed: see `membership_auth.py`.

spec: client-server-api#mroomjoin_rules, client-server-api#restricted-rooms
"""

from collections.abc import Mapping
from typing import Any, Final

from federation.protocol.ids import RoomID, is_room_id
from federation.protocol.room_versions import RoomVersion

MAX_ALLOWED_ROOMS: Final = 50
"""How many rooms of a restricted join rule are read; further ones are ignored."""

_MEMBERSHIP: Final = "m.room_membership"


def read_allowed_rooms(content: Mapping[str, Any]) -> list[RoomID]:
    """Return the rooms whose members may join, from the content of an m.room.join_rules event.

    Malformed entries are ignored.
    """
    allow = content.get("allow")
    conditions = allow[:MAX_ALLOWED_ROOMS] if isinstance(allow, list) else []
    return [
        RoomID(room_id)
        for condition in conditions
        if isinstance(condition, Mapping)
        and condition.get("type") == _MEMBERSHIP
        and isinstance(room_id := condition.get("room_id"), str)
        and is_room_id(room_id)
    ]


def lets_members_in(version: RoomVersion, join_rule: str | None) -> bool:
    """Whether members of the allowed rooms may join."""
    if join_rule == "restricted":
        return version.restricted_joins
    return join_rule == "knock_restricted" and version.knock_restricted


def takes_knocks(version: RoomVersion, join_rule: str | None) -> bool:
    """Whether anyone may ask to be let in."""
    if join_rule == "knock":
        return version.knocking
    return join_rule == "knock_restricted" and version.knock_restricted
