"""Checks whether an event is allowed, by the authorization rules of its room version.

The rules about memberships are in `membership_auth.py`.

- `auth_keys` returns the type and state key of each state entry that the rules need for an event.
  The caller loads these entries.
- `check_auth_events` checks the auth events that the event names.
- `check_auth` checks the event against a state: the state that its auth events form, the state
  before the event, or the current state.

Both checks follow the order of the specification, so the reported rule is the first that refuses
the event.

spec: server-server-api#checks-performed-on-receipt-of-a-pdu, rooms/v1#authorisation-rules …
rooms/v12#authorisation-rules
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from federation.protocol.auth_rules import AuthError, Rule
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import is_user_id
from federation.protocol.membership_auth import (
    JOIN_RULES,
    MEMBER,
    Situation,
    check_membership,
    membership_of,
)
from federation.protocol.power_levels import LEVEL_DEFAULTS, PowerLevels, level_entries, parse_level
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion

CREATE: Final = StateKey("m.room.create", "")
POWER_LEVELS: Final = StateKey("m.room.power_levels", "")


def auth_keys(
    version: RoomVersion, type: str, sender: str, state_key: str | None, content: Mapping[str, Any]
) -> frozenset[StateKey]:
    """Return the keys of the state entries that an event must name in its `auth_events`, if the
    room has them.

    The parameters are fields of the event, because a new event is built from the result. spec:
    server-server-api#auth-events-selection
    """
    if type == "m.room.create":
        return frozenset()
    keys = {POWER_LEVELS, StateKey(MEMBER, sender)}
    if not version.room_id_is_create_hash:
        keys.add(CREATE)
    if type == MEMBER:
        if state_key is not None:
            keys.add(StateKey(MEMBER, state_key))
        membership = content.get("membership")
        if membership in ("join", "invite", "knock"):
            keys.add(JOIN_RULES)
        if membership == "invite":
            invite = content.get("third_party_invite")
            signed = invite.get("signed") if isinstance(invite, Mapping) else None
            token = signed.get("token") if isinstance(signed, Mapping) else None
            if isinstance(token, str):
                keys.add(StateKey("m.room.third_party_invite", token))
        authoriser = content.get("join_authorised_via_users_server")
        if membership == "join" and version.restricted_joins and isinstance(authoriser, str):
            keys.add(StateKey(MEMBER, authoriser))
    return frozenset(keys)


def auth_events_needed(version: RoomVersion, event: Event) -> frozenset[StateKey]:
    """`auth_keys` of an event that exists."""
    return auth_keys(version, event.type, event.sender, event.state_key, event.content)


def check_auth_events(
    event: Event,
    auth_events: Sequence[Event],
    *,
    rejected: Collection[str] = frozenset(),
    create: Event | None = None,
) -> None:
    """Whether the event names the right auth events. Raises `AuthError`.

    `auth_events` are those that the event names, in its order, repeated where it repeats them;
    `rejected` are the ids of those (and of the create event) that were rejected. `create` is the
    room's create event where the room is named after it, None if it is not known; other versions
    have it among the auth events.
    """
    version = event.version
    if event.type == "m.room.create":
        return  # Rule 1 decides alone.
    if version.room_id_is_create_hash and (
        create is None
        or create.type != "m.room.create"
        or create.event_id[1:] != event.room_id[1:]
        or create.event_id in rejected
    ):
        raise AuthError(version, Rule.ROOM_UNKNOWN)
    keys = [(auth.type, auth.state_key) for auth in auth_events]
    if len(set(keys)) != len(keys):
        raise AuthError(version, Rule.AUTH_DUPLICATE)
    unexpected = set(keys) - auth_events_needed(version, event)
    if unexpected:
        raise AuthError(version, Rule.AUTH_UNEXPECTED)
    if any(auth.event_id in rejected for auth in auth_events):
        raise AuthError(version, Rule.AUTH_REJECTED)
    if not version.room_id_is_create_hash and CREATE not in keys:
        raise AuthError(version, Rule.AUTH_NO_CREATE)
    if any(auth.room_id != event.room_id for auth in auth_events):
        raise AuthError(version, Rule.AUTH_OTHER_ROOM)


def check_auth(
    event: Event,
    state: Mapping[StateKey, Event],
    *,
    create: Event,
    power_levels: PowerLevels | None = None,
    signed_by: Collection[str] | None = None,
) -> None:
    """Whether the event is allowed in a room in that state. Raises `AuthError`.

    `state` needs no more than the entries of `auth_keys`. `create` is the room's create event (for
    a create event: that event itself). `power_levels` is the value of the state's power levels,
    where the caller has kept it. `signed_by` are the servers whose signatures on the event have
    been verified; None says that all that the event needs were verified when it was received (as
    for any event that we have stored).
    """
    version = event.version
    if event.type == "m.room.create":
        _check_create(event)
        return
    if create.content.get("m.federate") is False and _server_of(event.sender) != _server_of(
        create.sender
    ):
        raise AuthError(version, Rule.NOT_FEDERATED)
    if version.aliases_event_authorised and event.type == "m.room.aliases":
        if event.state_key is None:
            raise AuthError(version, Rule.ALIASES_STATE_KEY)
        if _server_of(event.sender) != event.state_key:
            raise AuthError(version, Rule.ALIASES_SERVER)
        return
    levels = power_levels
    if levels is None:
        levels = PowerLevels.of(version, state.get(POWER_LEVELS), create)
    if event.type == MEMBER:
        check_membership(event, Situation(state, create, levels, signed_by))
        return
    if membership_of(state, event.sender) != "join":
        raise AuthError(version, Rule.SENDER_NOT_JOINED)
    sender_level = levels.user_level(event.sender)
    if event.type == "m.room.third_party_invite":
        if sender_level < levels.invite:
            raise AuthError(version, Rule.THIRD_PARTY_INVITE_LEVEL)
        return
    required = levels.event_level(event.type, event.state_key is not None)
    if required > sender_level:
        raise AuthError(
            version,
            Rule.REQUIRED_LEVEL,
            f"Sending {event.type} needs a power level of {required}; yours is {sender_level}",
        )
    if (
        event.state_key is not None
        and event.state_key.startswith("@")
        and event.state_key != event.sender
    ):
        raise AuthError(version, Rule.STATE_KEY_OF_ANOTHER)
    if event.type == "m.room.power_levels":
        _check_power_levels(event, state.get(POWER_LEVELS), levels)
    elif version.redaction_event_authorised and event.type == "m.room.redaction":
        redacts = event.pdu.get("redacts")
        of_same_server = isinstance(redacts, str) and _server_of(redacts) == _server_of(
            event.event_id
        )
        if sender_level < levels.redact and not of_same_server:
            raise AuthError(version, Rule.REDACTION)


def _server_of(identifier: str) -> str:
    """The server name in an identifier: all after the first colon, or nothing if there is none."""
    return identifier.partition(":")[2]


def _check_create(event: Event) -> None:
    version = event.version
    content = event.content
    if event.prev_events:
        raise AuthError(version, Rule.CREATE_PREV_EVENTS)
    if version.room_id_is_create_hash:
        if "room_id" in event.pdu:
            raise AuthError(version, Rule.CREATE_ROOM_ID)
    elif _server_of(event.room_id) != _server_of(event.sender):
        raise AuthError(version, Rule.CREATE_ROOM_ID)
    if "room_version" in content:
        identifier = content["room_version"]
        if not isinstance(identifier, str) or identifier not in ROOM_VERSIONS:
            raise AuthError(version, Rule.CREATE_ROOM_VERSION)
    if not version.creator_is_sender and "creator" not in content:
        raise AuthError(version, Rule.CREATE_CREATOR)
    if version.creators_privileged and "additional_creators" in content:
        creators = content["additional_creators"]
        if not isinstance(creators, list | tuple) or not all(
            isinstance(user, str) and is_user_id(user) for user in creators
        ):
            raise AuthError(version, Rule.CREATE_ADDITIONAL_CREATORS)


def _check_power_levels(event: Event, current: Event | None, levels: PowerLevels) -> None:
    """The rule for m.room.power_levels. `levels` are those of the state before it, `current` is the
    event they come from."""
    version = event.version
    new = event.content
    _check_power_levels_form(version, new)
    if version.creators_privileged and not levels.creators.isdisjoint(level_entries(new, "users")):
        raise AuthError(version, Rule.POWER_CREATORS)
    if current is None:
        return
    old = current.content
    sender_level = levels.user_level(event.sender)
    for _name, old_level, new_level in _changes(version, old, new, LEVEL_DEFAULTS):
        if old_level is not None and old_level > sender_level:
            raise AuthError(version, Rule.POWER_LEVEL_CURRENT)
        if new_level is not None and new_level > sender_level:
            raise AuthError(version, Rule.POWER_LEVEL_NEW)
    entries = [
        change
        for name in (
            ("events", "notifications") if version.limits_notification_levels else ("events",)
        )
        for change in _entry_changes(version, old, new, name)
    ]
    if any(old_level is not None and old_level > sender_level for _key, old_level, _new in entries):
        raise AuthError(version, Rule.POWER_ENTRY_CURRENT)
    if any(new_level is not None and new_level > sender_level for _key, _old, new_level in entries):
        raise AuthError(version, Rule.POWER_ENTRY_NEW)
    users = _entry_changes(version, old, new, "users")
    if any(
        old_level is not None and old_level >= sender_level and user != event.sender
        for user, old_level, _new in users
    ):
        raise AuthError(version, Rule.POWER_USER_CURRENT)
    if any(new_level is not None and new_level > sender_level for _user, _old, new_level in users):
        raise AuthError(version, Rule.POWER_USER_NEW)


def _check_power_levels_form(version: RoomVersion, content: Mapping[str, Any]) -> None:
    """Every level must be one that the version can read.

    Before version 10 the pages ask this of `users` only, and their sections on strings and floats
    of the rest. Servers cannot work with a level that they cannot read, so it is refused there
    under the rule for `users`.
    """
    integers = version.integer_power_levels
    named_rule = Rule.POWER_LEVELS_FORM if integers else Rule.POWER_USERS_FORM
    entries_rule = Rule.POWER_ENTRIES_FORM if integers else Rule.POWER_USERS_FORM
    for name in LEVEL_DEFAULTS:
        if name in content and parse_level(version, content[name]) is None:
            raise AuthError(version, named_rule, f"The power level {name} must be an integer")
    for name in ("events", "notifications"):
        if (name == "events" or version.limits_notification_levels) and not _readable(
            version, content.get(name, {})
        ):
            raise AuthError(version, entries_rule, f"The power levels in {name} must be integers")
    users = content.get("users", {})
    if not _readable(version, users) or not all(map(is_user_id, users)):
        raise AuthError(version, Rule.POWER_USERS_FORM)


def _readable(version: RoomVersion, entries: object) -> bool:
    return isinstance(entries, Mapping) and all(
        parse_level(version, level) is not None for level in entries.values()
    )


_Changes = list[tuple[str, int | None, int | None]]


def _entry_changes(
    version: RoomVersion, old: Mapping[str, Any], new: Mapping[str, Any], name: str
) -> _Changes:
    old_entries, new_entries = level_entries(old, name), level_entries(new, name)
    return _changes(version, old_entries, new_entries, old_entries.keys() | new_entries.keys())


def _changes(
    version: RoomVersion, old: Mapping[str, Any], new: Mapping[str, Any], keys: Collection[str]
) -> _Changes:
    """The levels that differ, as (key, old, new), None where there is none. Another way to write a
    level is no change."""
    levels = (
        (key, parse_level(version, old.get(key)), parse_level(version, new.get(key)))
        for key in keys
    )
    return [change for change in levels if change[1] != change[2]]
