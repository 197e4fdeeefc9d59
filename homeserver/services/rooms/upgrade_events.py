"""What a room that replaces another begins with, as values: the contents of its first events.

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
COPIED: Final = tuple(
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
"""What is taken over as it is. Nothing of which it matters who sent it."""
COPIED_BY_TYPE: Final = (CHILD, PARENT, "m.room.image_pack")
"""Types of which every entry is taken over."""

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
    """Of the new room's m.room.create: the type of the old room, and whether it federates, stay as
    they were."""
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


def power_levels(
    old: PowerLevels, version: RoomVersion, creator: UserID, additional_creators: Collection[UserID]
) -> dict[str, Any]:
    """Of the new room: as they were, with what the new version writes in another way.

    Creators who stand above all levels in the new version have none in it; those who did in the old
    one get the highest. In a room whose version brings such creators, only they may replace it at
    first, as in any new room of that version. spec: rooms/v12#authorisation-rules
    """
    result = _as_numbers(old)
    users: dict[str, int] = {
        name: level for name, level in result["users"].items() if is_user_id(name)
    }
    events: dict[str, int] = result.get("events", {})
    single = [result[name] for name in LEVEL_DEFAULTS if name in result]
    highest = max([_OWNER_LEVEL, *single, *events.values(), *users.values()])
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


def quiet_levels(old: PowerLevels) -> dict[str, Any]:
    """Power levels of the old room in which ordinary members neither speak nor invite.

    spec: client-server-api#room-upgrades
    """
    least = max(50, old.users_default + 1)
    raised = {"events_default": max(old.events_default, least), "invite": max(old.invite, least)}
    return {**old.content, **_as_numbers(old), **raised}


def _as_numbers(old: PowerLevels) -> dict[str, Any]:
    """What power levels say, with numbers where old versions also took other forms; `users` is
    always there."""
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
    """The content of a state entry in the new room, None where it cannot be taken over."""
    content = event.content
    try:
        encode_strict(content)
    except BadJson:
        return None  # an old version took what a new one refuses
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
    """The m.room.canonical_alias of the new room, which has the moved aliases, and what is left for
    the old one."""
    alias, others = content.get("alias"), content.get("alt_aliases")
    others = [name for name in others if isinstance(name, str)] if isinstance(others, list) else []
    split: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for part, belongs in zip(split, (True, False), strict=True):
        if isinstance(alias, str) and (alias in moved) is belongs:
            part["alias"] = alias
        kept = [name for name in others if (name in moved) is belongs]
        if kept:
            part["alt_aliases"] = kept
    return split


def predecessor_of(create: Event) -> RoomID | None:
    """The room that a room says it replaces."""
    predecessor = create.content.get("predecessor")
    room_id = predecessor.get("room_id") if isinstance(predecessor, Mapping) else None
    return RoomID(room_id) if isinstance(room_id, str) else None
