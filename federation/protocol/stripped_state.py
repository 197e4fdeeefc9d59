"""Stripped state: the few state events that describe a room to users outside it.

Invites and knocks carry it, in two forms. Servers send each other complete events, so that the
receiver can check the create event, and with it the room's id and version. Clients get stripped
events, which have only the keys `type`, `state_key`, `sender` and `content`.

Entries from another server may be malformed or false. `parse_stripped_state` removes malformed
entries, and other keys from valid entries. It cannot detect false entries.

spec: client-server-api#stripped-state, server-server-api#inviting-to-a-room,
server-server-api#knocking-rooms
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from federation.protocol.errors import BadEvent, InvalidParam
from federation.protocol.events import Event, StateKey, encode_pdu, parse_event
from federation.protocol.ids import RoomID, is_user_id
from federation.protocol.room_versions import RoomVersion

CREATE: Final = StateKey("m.room.create", "")

STRIPPED_STATE: Final[tuple[StateKey, ...]] = (
    CREATE,
    StateKey("m.room.name", ""),
    StateKey("m.room.avatar", ""),
    StateKey("m.room.topic", ""),
    StateKey("m.room.join_rules", ""),
    StateKey("m.room.canonical_alias", ""),
    StateKey("m.room.encryption", ""),
)
"""The entries of stripped state, the create event first. spec: client-server-api#stripped-state"""

MAX_STRIPPED_EVENTS: Final = 100
"""Events that are accepted from another server. The specification names seven."""


class StrippedEvent(msgspec.Struct, frozen=True):
    """A state event of which four keys are known."""

    type: str
    state_key: str
    sender: str
    content: Mapping[str, Any]

    @property
    def key(self) -> StateKey:
        """The state entry that it sets."""
        return StateKey(self.type, self.state_key)


def stripped_state_keys(inviter: str | None = None) -> tuple[StateKey, ...]:
    """The state to load for an invite (with who invites, so that the invited see a name) or a
    knock."""
    return (
        STRIPPED_STATE if inviter is None else (*STRIPPED_STATE, StateKey("m.room.member", inviter))
    )


def strip_event(event: Event) -> dict[str, Any]:
    """A state event as clients get it in stripped state: four keys, no more."""
    return {
        "type": event.type,
        "state_key": event.key.state_key,
        "sender": event.sender,
        "content": event.content,
    }


def federation_form(events: Iterable[Event]) -> list[msgspec.Raw]:
    """`invite_room_state` or `knock_room_state` for another server: whole PDUs, in their stored
    bytes."""
    return [msgspec.Raw(encode_pdu(event)) for event in events]


def parse_room_state(version: RoomVersion, room_id: RoomID, entries: object) -> list[Event]:
    """The events of an `invite_room_state` or `knock_room_state` of a room, checked for form, room
    and create event.

    Signatures are for the caller to check. Raises `InvalidParam` if the list is none, if an entry
    is no event of that room and version, or if the create event is missing. For versions before 12
    servers may be lenient, since many send only stripped events: `parse_stripped_state` reads
    those. spec: server-server-api#put_matrixfederationv2inviteroomideventid
    """
    events = [_parse_entry(version, room_id, entry) for entry in _entries(entries)]
    if not any(event.key == CREATE for event in events):
        raise InvalidParam("The room's state lacks the create event")
    return events


def sift_room_state(version: RoomVersion, room_id: RoomID, entries: object) -> list[Event]:
    """As `parse_room_state`, but what is malformed is left out. Raises `InvalidParam` if it is no
    list or too long."""
    events = []
    for entry in _entries(entries):
        try:
            events.append(_parse_entry(version, room_id, entry))
        except InvalidParam:
            continue
    return events


def parse_stripped_state(entries: object) -> list[dict[str, Any]]:
    """Return the part of another server's stripped state that clients may see.

    Each entry keeps four keys, and malformed entries are left out. Entries may be stripped events
    or complete PDUs. Of entries for the same state the last counts. Raises `InvalidParam` if the
    value is no list or too long.
    """
    stripped: dict[StateKey, dict[str, Any]] = {}
    for entry in _entries(entries):
        if not isinstance(entry, Mapping):
            continue
        event_type, state_key, sender, content = (
            entry.get(key) for key in ("type", "state_key", "sender", "content")
        )
        if (
            isinstance(event_type, str)
            and isinstance(state_key, str)
            and isinstance(sender, str)
            and is_user_id(sender)
            and isinstance(content, Mapping)
        ):
            stripped[StateKey(event_type, state_key)] = {
                "type": event_type,
                "state_key": state_key,
                "sender": sender,
                "content": content,
            }
    return list(stripped.values())


def _parse_entry(version: RoomVersion, room_id: RoomID, entry: object) -> Event:
    """Raises InvalidParam."""
    if not isinstance(entry, Mapping):
        raise InvalidParam("An event of the room's state is no object")
    try:
        event = parse_event(version, entry)
    except BadEvent as error:
        raise InvalidParam(f"An event of the room's state is malformed: {error.text}") from error
    if event.state_key is None or event.room_id != room_id:
        raise InvalidParam("An event of the room's state is no state event of this room")
    return event


def _entries(entries: object) -> list[object]:
    if not isinstance(entries, list):
        raise InvalidParam("The room's state must be an array")
    if len(entries) > MAX_STRIPPED_EVENTS:
        raise InvalidParam(f"The room's state may not have more than {MAX_STRIPPED_EVENTS} events")
    return entries
