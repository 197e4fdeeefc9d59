"""The state that goes with a timeline: all of it, or what changed before it begins (or, if so asked, until it ends).

The state before an event is the state after it, but for the entry that it set, whose former event is stored with it.
"""

from collections.abc import Iterable, Sequence, Set

import msgspec

from federation.protocol.events import StateKey
from federation.rooms.room_events import RoomEvents, StoredEvent
from homeserver.services.event_filters import RoomEventFilter
from storage.state_tree import StateTreeStore

MEMBER = "m.room.member"

Entries = dict[StateKey, int]
"""Numbers of events by state key."""


class StatePoint(msgspec.Struct, frozen=True, gc=False):
    """A state of a room: the one after some event, or just before it."""

    room_nid: int
    root: bytes | None
    before: StoredEvent | None = None
    """The point is just before this event, whose root is the one here."""


def point_before(event: StoredEvent) -> StatePoint:
    """The state just before an event."""
    return StatePoint(event.room_nid, event.state_root, event if event.event.state_key is not None else None)


class RoomStates:
    """Reads states and their differences at points of a timeline."""

    def __init__(self, trees: StateTreeStore, events: RoomEvents) -> None:
        self._trees = trees
        self._events = events

    async def get_all(self, point: StatePoint) -> Entries:
        """The whole state."""
        entries = {StateKey(*key): nid for key, nid in (await self._trees.get_all(point.room_nid, point.root)).items()}
        if point.before is not None:
            _put_back(entries, point.before.event.key, point.before.replaces)
        return entries

    async def get_some(self, point: StatePoint, keys: Iterable[StateKey]) -> Entries:
        """Some entries of the state."""
        found = await self._trees.get_entries(point.room_nid, point.root, keys)
        entries = {StateKey(*key): nid for key, nid in found.items()}
        if point.before is not None and point.before.event.key in entries:
            _put_back(entries, point.before.event.key, point.before.replaces)
        return entries

    async def get_changes(self, former: bytes | None, point: StatePoint) -> Entries:
        """What differs at the point from a former state of the room. Entries are never unset."""
        diff = await self._trees.get_diff(point.room_nid, former, point.root)
        changes = {StateKey(*key): new for key, (_, new) in diff.items() if new is not None}
        if point.before is not None:
            key = point.before.event.key
            old, _ = diff.get(key, (None, None))
            _put_back(changes, key, point.before.replaces if point.before.replaces != old else None)
        return changes

    async def load(self, states: Sequence[tuple[Entries, str]], wanted: RoomEventFilter) -> list[list[StoredEvent]]:
        """The events of the entries of each (state, room id), as far as the filter lets them through: one read for all."""
        numbers = [
            [nid for key, nid in entries.items() if wanted.passes_all_events or wanted.allows(key.type, None)]
            if wanted.allows_room(room_id)
            else []
            for entries, room_id in states
        ]
        events = await self._events.get_events({nid for nids in numbers for nid in nids})
        if wanted.passes_all_events:
            return [[events[nid] for nid in nids] for nids in numbers]
        return [[events[nid] for nid in nids if wanted.allows_event(events[nid].event)] for nids in numbers]


def without_members(entries: Entries, kept: Set[str]) -> Entries:
    """The entries without the memberships of others than these."""
    return {key: nid for key, nid in entries.items() if key.type != MEMBER or key.state_key in kept}


def changes_of(timeline: Sequence[StoredEvent]) -> Entries:
    """The entries that the events of a timeline set."""
    return {event.event.key: event.nid for event in timeline if event.event.state_key is not None}


def _put_back(entries: Entries, key: StateKey, nid: int | None) -> None:
    if nid is None:
        entries.pop(key, None)
    else:
        entries[key] = nid
