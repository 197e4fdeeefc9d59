"""The state that /sync sends with a room's timeline: the full state, or the entries that changed.

It is the state before the timeline, or the state at its end if the request has `use_state_after`.
The state at the end is the room's resolved state. If the room's DAG is forked, state resolution may
have changed an entry without an event, or may have overruled an event that sets it.

The state before the timeline is the state at its end with some entries put back: each entry that
the timeline sets gets the value from before the timeline. This needs no second state, because each
state event is stored with the event that it replaced.
"""

from collections.abc import Iterable, Mapping, Sequence, Set

import msgspec

from federation.protocol.events import StateKey
from federation.rooms.events import RoomEvents, StoredEvent
from homeserver.services.filters.event_filters import RoomEventFilter
from storage.state.state_tree import StateTreeStore

MEMBER = "m.room.member"

Entries = dict[StateKey, int]
"""Event numbers by state key."""


class StatePoint(msgspec.Struct, frozen=True, gc=False):
    """A state of a room, with some entries replaced."""

    room_nid: int
    root: bytes | None
    overrides: Mapping[StateKey, int | None] = msgspec.field(default_factory=dict)
    """Replaced entries: those before a timeline, or a former member's own. None if an entry is
    unset."""


class RoomStates:
    """Reads states, and their differences, at points of a timeline."""

    def __init__(self, *, trees: StateTreeStore, events: RoomEvents) -> None:
        self._trees = trees
        self._events = events

    async def get_all(self, point: StatePoint) -> Entries:
        """Return the full state."""
        entries = {
            StateKey(*key): nid
            for key, nid in (await self._trees.get_all(point.room_nid, point.root)).items()
        }
        _apply(entries, point.overrides)
        return entries

    async def get_without_members(self, point: StatePoint) -> Entries:
        """Return the state without memberships, except those in `overrides`."""
        others = await self._trees.get_all_but(point.room_nid, point.root, MEMBER)
        entries = {StateKey(*key): nid for key, nid in others.items()}
        _apply(entries, point.overrides)
        return entries

    async def get_some(self, point: StatePoint, keys: Iterable[StateKey]) -> Entries:
        """Return some entries of the state."""
        wanted = set(keys)
        found = await self._trees.get_entries(point.room_nid, point.root, wanted)
        entries = {StateKey(*key): nid for key, nid in found.items()}
        _apply(entries, {key: nid for key, nid in point.overrides.items() if key in wanted})
        return entries

    async def get_changes(self, former: bytes | None, point: StatePoint) -> Entries:
        """Return the entries that differ from a former state of the room. Unset entries are left
        out."""
        diff = await self._trees.get_diff(point.room_nid, former, point.root)
        changes = {StateKey(*key): new for key, (_, new) in diff.items() if new is not None}
        # an entry that equals the former one is not a change
        _apply(
            changes,
            {
                key: nid if nid != diff.get(key, (None, None))[0] else None
                for key, nid in point.overrides.items()
            },
        )
        return changes

    async def load(
        self, states: Sequence[tuple[Entries, str]], wanted: RoomEventFilter
    ) -> list[list[StoredEvent]]:
        """Load the events of each (state, room ID) that the filter allows, with one read for
        all."""
        numbers = [_wanted_nids(entries, room_id, wanted) for entries, room_id in states]
        if not any(numbers):
            return [[] for _ in states]
        events = await self._events.get_events({nid for nids in numbers for nid in nids})
        if wanted.passes_all_events:
            return [[events[nid] for nid in nids] for nids in numbers]
        return [
            [events[nid] for nid in nids if wanted.allows_event(events[nid].event)]
            for nids in numbers
        ]


def _wanted_nids(entries: Entries, room_id: str, wanted: RoomEventFilter) -> list[int]:
    """Return the numbers of the events whose types the filter allows."""
    if not wanted.allows_room(room_id):
        return []
    if wanted.passes_all_events:
        return list(entries.values())
    return [nid for key, nid in entries.items() if wanted.allows(key.type, None)]


def without_members(entries: Entries, members: Set[str]) -> Entries:
    """Drop memberships, except those of some users."""
    return {
        key: nid for key, nid in entries.items() if key.type != MEMBER or key.state_key in members
    }


def changes_of(timeline: Sequence[StoredEvent]) -> Entries:
    """Return the entries that the events of a timeline set."""
    return {event.event.key: event.nid for event in timeline if event.event.state_key is not None}


def undo(timeline: Iterable[StoredEvent]) -> dict[StateKey, int | None]:
    """Return the entries that a timeline sets, as they were before it."""
    before: dict[StateKey, int | None] = {}
    for event in timeline:
        if event.event.state_key is not None:
            before.setdefault(event.event.key, event.replaces)
    return before


def _apply(entries: Entries, overrides: Mapping[StateKey, int | None]) -> None:
    for key, nid in overrides.items():
        if nid is None:
            entries.pop(key, None)
        else:
            entries[key] = nid
