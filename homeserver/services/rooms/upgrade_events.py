"""The contents of the first events of a room that replaces another.

spec: client-server-api#room-upgrades
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from federation.protocol.canonical_json import encode_strict
from federation.protocol.errors import BadJson
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import RoomID, UserID, is_user_id
from federation.protocol.join_rules import lets_members_in, takes_knocks
from federation.protocol.policy_server import OLD_POLICY, POLICY
from federation.protocol.power_levels import LEVEL_DEFAULTS, PowerLevels, level_entries, parse_level
from federation.protocol.room_versions import RoomVersion
from federation.protocol.space_hierarchy import CHILD, PARENT

TOMBSTONE: Final = "m.room.tombstone"
JOIN_RULES: Final = "m.room.join_rules"
COPIED_STATE: Final = tuple(
    StateKey(type, "")
    for type in (
        JOIN_RULES,
        "m.room.history_visibility",
        "m.room.guest_access",
        "m.room.encryption",
        "m.room.server_acl",
        POLICY.type,
        OLD_POLICY.type,
        "m.room.name",
        "m.room.topic",
        "m.room.avatar",
        "m.room.retention",
    )
)
"""State that is copied unchanged. The sender of these events does not matter."""
COPIED_TYPES: Final = (CHILD, PARENT, "m.room.image_pack")
"""Event types whose entries are all copied."""

_GROUPS: Final = ("users", "events", "notifications")
_TOMBSTONE_LEVEL: Final = 150
_OWNER_LEVEL: Final = 100


def create_content(
    old: Event,
    version: RoomVersion,
    creator: UserID,
    last_event: str | None,
    additional_creators: Collection[UserID],
) -> dict[str, Any]:
    """Return the content of the new room's m.room.create. Room type and federation are those of the
    old room."""
    predecessor: dict[str, str] = {"room_id": old.room_id}
    if last_event is not None:
        predecessor["event_id"] = last_event
    content: dict[str, Any] = {"room_version": version.identifier, "predecessor": predecessor}
    content |= {name: old.content[name] for name in ("type", "m.federate") if name in old.content}
    if not version.creator_is_sender:
        content["creator"] = creator
    if version.creators_privileged and additional_creators:
        content["additional_creators"] = list(dict.fromkeys(additional_creators))
    return content


def new_power_levels(
    old: PowerLevels, version: RoomVersion, creator: UserID, additional_creators: Collection[UserID]
) -> dict[str, Any]:
    """Return the power levels of the new room: the old ones, in the form of the new version.

    Creators that are above all levels in the new version have no level in it; those that were so in
    the old version get the highest level. If only the new version has such creators, only they may
    replace the room at first, as in any new room of that version. spec:
    rooms/v12#authorisation-rules
    """
    result = _as_numbers(old)
    users: dict[str, int] = {
        name: level for name, level in result["users"].items() if is_user_id(name)
    }
    events: dict[str, int] = result.get("events", {})
    defaults = [result[name] for name in LEVEL_DEFAULTS if name in result]
    highest = max([_OWNER_LEVEL, *defaults, *events.values(), *users.values()])
    if version.creators_privileged:
        users = {
            name: level
            for name, level in users.items()
            if name not in {creator, *additional_creators}
        }
        if not old.version.creators_privileged:
            events = {
                **events,
                TOMBSTONE: max(_TOMBSTONE_LEVEL, highest + 1, events.get(TOMBSTONE, 0)),
            }
    elif old.version.creators_privileged:
        users |= dict.fromkeys(old.creators, highest)
    return result | {"users": users} | ({"events": events} if events else {})


def muted_power_levels(old: PowerLevels) -> dict[str, Any]:
    """Return power levels for the old room with which ordinary members neither send nor invite.

    spec: client-server-api#room-upgrades
    """
    least = max(50, old.users_default + 1)
    raised = {"events_default": max(old.events_default, least), "invite": max(old.invite, least)}
    return {**old.content, **_as_numbers(old), **raised}


def _as_numbers(old: PowerLevels) -> dict[str, Any]:
    """Return power levels as numbers, which older versions also allow in other forms. `users` is
    always present."""
    found: dict[str, Any] = {
        name: level
        for name in LEVEL_DEFAULTS
        if (level := parse_level(old.version, old.content.get(name))) is not None
    }
    for group in _GROUPS:
        levels = {
            name: level
            for name, value in level_entries(old.content, group).items()
            if (level := parse_level(old.version, value)) is not None
        }
        if levels or group == "users":
            found[group] = levels
    return found


def copied_content(version: RoomVersion, event: Event) -> Mapping[str, Any] | None:
    """Return the content of a state entry in the new room; None if it cannot be copied."""
    content = event.content
    try:
        encode_strict(content)
    except BadJson:
        return None  # the new version refuses what the old one accepted
    if event.type == JOIN_RULES:
        return _join_rules(version, content)
    return content or None


def _join_rules(version: RoomVersion, content: Mapping[str, Any]) -> Mapping[str, Any]:
    rule = content.get("join_rule")
    if rule == "public" or lets_members_in(version, rule) or takes_knocks(version, rule):
        return content
    if rule == "knock_restricted" and lets_members_in(version, "restricted"):
        return {**content, "join_rule": "restricted"}
    return {"join_rule": "invite"}


def split_aliases(
    content: Mapping[str, Any], moved: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the m.room.canonical_alias of the new room, with the moved aliases, and that of the
    old room with the rest."""
    alias, listed = content.get("alias"), content.get("alt_aliases")
    alt_aliases = (
        [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    )
    split: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for part, belongs in zip(split, (True, False), strict=True):
        if isinstance(alias, str) and (alias in moved) is belongs:
            part["alias"] = alias
        selected = [name for name in alt_aliases if (name in moved) is belongs]
        if selected:
            part["alt_aliases"] = selected
    return split


def get_predecessor(create: Event) -> RoomID | None:
    """Return the room that this room says it replaces."""
    predecessor = create.content.get("predecessor")
    room_id = predecessor.get("room_id") if isinstance(predecessor, Mapping) else None
    return RoomID(room_id) if isinstance(room_id, str) else None
