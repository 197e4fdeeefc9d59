"""Computes how a state event changes the tables that are derived from the state.

These tables hold memberships, room summaries, the children of spaces, and retention periods. Anyone
may send any content, so a malformed value counts as absent.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from federation.peers.identity import ServerIdentity
from federation.protocol.events import Event, load_event
from federation.protocol.ids import EventID, RoomID, UserID, is_room_id
from federation.protocol.join_rules import read_allowed_rooms
from federation.protocol.retention import RETENTION, read_max_lifetime
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.space_hierarchy import CHILD, is_link, is_suggested, read_order
from storage.engine.interface import SQLValue
from storage.events.events import EventStore
from storage.persist.state_effects import NewRetention, StateEffect
from storage.rooms.memberships import NewMembership
from storage.rooms.rooms import RoomRow
from storage.rooms.spaces import NewChild

MAX_TEXT_LENGTH: Final = 4096
"""Characters of a name or topic that directories store; the event has all of it."""

MEMBERSHIPS: Final = frozenset({"join", "invite", "leave", "ban", "knock"})

# type of a state event with an empty state key → (column of the summary, property of the content)
_SUMMARY: Final[Mapping[str, tuple[str, str]]] = {
    "m.room.name": ("name", "name"),
    "m.room.topic": ("topic", "topic"),
    "m.room.canonical_alias": ("canonical_alias", "alias"),
    "m.room.avatar": ("avatar_url", "url"),
    "m.room.join_rules": ("join_rule", "join_rule"),
    "m.room.history_visibility": ("history_visibility", "history_visibility"),
    "m.room.guest_access": ("guest_access", "guest_access"),
    "m.room.encryption": ("encryption", "algorithm"),
}


class StoredEffects:
    """Computes the effects of many stored events in one batch. It does not fill the event cache,
    because few of these events are needed again."""

    def __init__(self, *, store: EventStore, identity: ServerIdentity) -> None:
        self._store = store
        self._identity = identity

    async def of(self, room: RoomRow, event_nids: Collection[int]) -> Mapping[int, StateEffect]:
        """Return the effects of state events of a room, by event number."""
        version, room_id = ROOM_VERSIONS[room.version], RoomID(room.room_id)
        return {
            nid: state_effect(
                load_event(version, EventID(row.event_id), room_id, row.pdu), self._identity
            )
            for nid, row in (await self._store.get_events(event_nids)).items()
        }


def state_effect(event: Event, identity: ServerIdentity) -> StateEffect:
    """Return the effect of a state event that becomes part of the current state."""
    if event.type == "m.room.member" and event.state_key is not None:
        return StateEffect(membership=_membership(event, UserID(event.state_key), identity))
    if event.type == CHILD and event.state_key is not None and is_room_id(event.state_key):
        return StateEffect(child=_child(event, event.state_key))
    if event.state_key != "":
        return StateEffect()
    if event.type == "m.room.create":
        summary: dict[str, SQLValue] = {"room_type": _text(event.content, "type")}
        if event.content.get("m.federate") is False:
            summary["federates"] = 0
        return StateEffect(summary=summary)
    if event.type == RETENTION.type:
        return StateEffect(retention=NewRetention(read_max_lifetime(event.content)))
    if event.type in _SUMMARY:
        column, name = _SUMMARY[event.type]
        fields: dict[str, SQLValue] = {column: _text(event.content, name)}
        if event.type == "m.room.topic":
            fields[column] = _plain_topic(event.content) or fields[column]
        if event.type == "m.room.join_rules":
            allowed = read_allowed_rooms(event.content)
            fields["allowed_rooms"] = msgspec.json.encode(allowed).decode() if allowed else None
        return StateEffect(summary=fields)
    return StateEffect()


def effect_of_absence(event: Event, identity: ServerIdentity) -> StateEffect:
    """Return the effect of removing the entry that this event had set from the current state."""
    effect = state_effect(event, identity)
    member = effect.membership
    if member is not None:
        member = replace(member, membership="leave", display_name=None, avatar_url=None)
    child = None if effect.child is None else replace(effect.child, is_link=False)
    summary = {column: 1 if column == "federates" else None for column in effect.summary}
    lifetime = None if effect.retention is None else NewRetention(None)
    return StateEffect(member, summary, child, lifetime)


def _membership(event: Event, user_id: UserID, identity: ServerIdentity) -> NewMembership | None:
    membership = event.membership
    if membership not in MEMBERSHIPS:
        return None
    return NewMembership(
        user_id=user_id,
        membership=membership,
        sender=event.sender,
        is_local=identity.is_local(user_id),
        display_name=_text(event.content, "displayname"),
        avatar_url=_text(event.content, "avatar_url"),
    )


def _plain_topic(content: Mapping[str, Any]) -> str | None:
    """Return the plain text among the forms of a topic. spec: client-server-api#mroomtopic"""
    block = content.get("m.topic")
    forms = block.get("m.text") if isinstance(block, Mapping) else None
    for form in forms if isinstance(forms, list) else ():
        if isinstance(form, Mapping) and form.get("mimetype", "text/plain") == "text/plain":
            return _text(form, "body")
    return None


def _child(event: Event, child_id: str) -> NewChild:
    content = event.content
    return NewChild(
        child_id,
        is_link(content),
        read_order(content),
        is_suggested(content),
        event.origin_server_ts,
    )


def _text(content: Mapping[str, Any], name: str) -> str | None:
    value = content.get(name)
    # PostgreSQL's texts cannot hold NUL
    return value[:MAX_TEXT_LENGTH].replace("\x00", "") or None if isinstance(value, str) else None
