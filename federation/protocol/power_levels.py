"""Reads the power levels of a room from its m.room.power_levels and m.room.create events.

A `PowerLevels` depends only on these two events, so it can be cached with the power-levels event.
It costs almost nothing to make, because most values are read on demand. It returns a level for
every user, event type and action, whatever the event contains. A value that is not a valid level
counts as absent. (Authorization refuses events with such values, except in `notifications` before
room version 6.)

spec: client-server-api#mroompower_levels, server-server-api#definitions
"""

import math
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from federation.protocol.errors import BadJson
from federation.protocol.events import Event
from federation.protocol.ids import UserID
from federation.protocol.room_versions import RoomVersion

CREATOR_LEVEL: Final = 2**53
"""The infinite level of privileged creators: above every level that an event of such a room can
set."""

LEVEL_DEFAULTS: Final[Mapping[str, int]] = {
    "users_default": 0,
    "events_default": 0,
    "state_default": 50,
    "ban": 50,
    "redact": 50,
    "kick": 50,
    "invite": 0,
}
"""The properties that are a single level, in the order in which authorization looks at them, with
their defaults."""

_NOTIFICATION_DEFAULT: Final = 50
_LONE_CREATOR_LEVEL: Final = 100
"""The creator's level while there is no power-levels event, where creators are not privileged."""

_LARGEST: Final = int(sys.float_info.max)
_DIGITS_OF_LARGEST: Final = sys.float_info.max_10_exp + 1
_STRINGY: Final = re.compile(r"([+-]?)0*([0-9]+)")


def parse_level(version: RoomVersion, value: object) -> int | None:
    """One power level as it stands in an event, or None if it is not one in this version.

    From version 10 on only integers; before, strings of an integer too, and floats where canonical
    JSON is not enforced. spec: rooms/v1#mroompower_levels-events-accept-values-as-strings,
    rooms/v1#mroompower_levels-events-accept-values-as-floats
    """
    if type(value) is int:  # a bool is an int to Python, not to JSON
        return value if -_LARGEST <= value <= _LARGEST else None
    if version.integer_power_levels:
        return None
    if isinstance(value, str):
        match = _STRINGY.fullmatch(value.strip())
        if match is None or len(match[2]) > _DIGITS_OF_LARGEST:
            return None
        level = int(match[1] + match[2])
        return level if -_LARGEST <= level <= _LARGEST else None
    if isinstance(value, float) and not version.strict_canonical_json and math.isfinite(value):
        return math.trunc(value)
    return None


def check_new_levels(content: Mapping[str, Any]) -> None:
    """Whether an m.room.power_levels event of our own has integers only, in versions too that would
    take more.

    Raises `BadJson`. spec: server-server-api#definitions
    """
    entries = [(name, content[name]) for name in LEVEL_DEFAULTS if name in content]
    for group in ("users", "events", "notifications"):
        entries += level_entries(content, group).items()
    for name, level in entries:
        if type(level) is not int:
            raise BadJson(f"The power level of {name[:255]} must be an integer")


def room_creators(create: Event) -> frozenset[UserID]:
    """Return the creators of the room.

    This is the sender, or the `creator` field in old versions, and the additional creators in new
    ones.
    spec: rooms/v11#remove-the-creator-property-of-mroomcreate-events, rooms/v12#authorisation-rules
    """
    version = create.version
    if not version.creator_is_sender:
        creator = create.content.get("creator")
        return frozenset([UserID(creator)]) if isinstance(creator, str) else frozenset()
    creators = {create.sender}
    if version.creators_privileged:
        further = create.content.get("additional_creators")
        if isinstance(further, list | tuple):
            creators.update(UserID(user) for user in further if isinstance(user, str))
    return frozenset(creators)


class PowerLevels(msgspec.Struct, frozen=True):
    """The power levels of a room at one state. Made by `PowerLevels.of`."""

    version: RoomVersion
    creators: frozenset[UserID]
    content: Mapping[str, Any]
    """The content of the power-levels event, or of the default if there is none."""
    users: Mapping[str, Any]
    events: Mapping[str, Any]
    users_default: int
    events_default: int
    state_default: int

    @classmethod
    def of(cls, version: RoomVersion, event: Event | None, create: Event) -> "PowerLevels":
        """From the room's current m.room.power_levels (None: it has none) and its create event."""
        creators = room_creators(create)
        if event is not None:
            content = event.content
        elif version.creators_privileged:
            content = {}
        else:
            content = {"users": dict.fromkeys(creators, _LONE_CREATOR_LEVEL)}
        return cls(
            version=version,
            creators=creators,
            content=content,
            users=level_entries(content, "users"),
            events=level_entries(content, "events"),
            users_default=_named_level(version, content, "users_default"),
            events_default=_named_level(version, content, "events_default"),
            state_default=_named_level(version, content, "state_default"),
        )

    def user_level(self, user_id: str) -> int:
        """A user's power level, member or not; `CREATOR_LEVEL` for privileged creators."""
        if self.version.creators_privileged and user_id in self.creators:
            return CREATOR_LEVEL
        level = parse_level(self.version, self.users.get(user_id))
        return self.users_default if level is None else level

    def event_level(self, type: str, is_state: bool) -> int:
        """The required power level of an event type. Memberships are not governed by it."""
        level = parse_level(self.version, self.events.get(type))
        if level is not None:
            return level
        return self.state_default if is_state else self.events_default

    def can_send(self, user_id: str, type: str, *, is_state: bool) -> bool:
        """Whether the level suffices; whether the user is in the room is another question."""
        return self.user_level(user_id) >= self.event_level(type, is_state)

    @property
    def invite(self) -> int:
        return _named_level(self.version, self.content, "invite")

    @property
    def kick(self) -> int:
        return _named_level(self.version, self.content, "kick")

    @property
    def ban(self) -> int:
        return _named_level(self.version, self.content, "ban")

    @property
    def redact(self) -> int:
        """The level needed to redact what others sent, besides that for sending
        m.room.redaction."""
        return _named_level(self.version, self.content, "redact")

    def notifications(self, key: str = "room") -> int:
        """The level needed to notify a whole group, such as `room` for @room. Any version may set
        it."""
        level = parse_level(self.version, level_entries(self.content, "notifications").get(key))
        return _NOTIFICATION_DEFAULT if level is None else level


def level_entries(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The `users`, `events` or `notifications` of a power-levels content; empty if it is not an
    object."""
    entries = content.get(name)
    return entries if isinstance(entries, Mapping) else {}


def _named_level(version: RoomVersion, content: Mapping[str, Any], name: str) -> int:
    level = parse_level(version, content.get(name))
    return LEVEL_DEFAULTS[name] if level is None else level
