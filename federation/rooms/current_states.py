"""Finds the current state of rooms at a past position: the state that clients received when they
synced up to that position.

While a room's history is forked, its current state is the resolution of all branches. The state
after the newest event covers only the branch of that event. So code that compares the states at two
positions uses this module.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from federation.protocol.events import StateKey
from federation.rooms.events import RoomEvents
from federation.rooms.timelines import Timelines
from storage.rooms.memberships import MembershipRow
from storage.state.state_tree import StateTreeStore

MEMBER: Final = "m.room.member"


class CurrentStates:
    """Finds the state roots of past current states. Use this class only on the reactor thread."""

    def __init__(self, *, timelines: Timelines, events: RoomEvents, trees: StateTreeStore) -> None:
        self._timelines = timelines
        self._events = events
        self._trees = trees

    async def at(self, positions: Mapping[int, int]) -> Mapping[int, bytes | None]:
        """Return the root of each room's current state at a position; None if it had none yet."""
        if not positions:
            return {}
        newest = await self._timelines.get_newest(positions)
        events = await self._events.get_events(arrival.event_nid for arrival in newest.values())
        return {
            room_nid: events[newest[room_nid].event_nid].current_root
            if room_nid in newest
            else None
            for room_nid in positions
        }

    async def having(self, room_nids: Collection[int], key: StateKey, position: int) -> set[int]:
        """Return the rooms whose current state had the entry at a position. Makes two reads."""
        if not room_nids:
            return set()
        roots = await self.at(dict.fromkeys(room_nids, position))
        states = await self._trees.get_entries_of_rooms(
            [(nid, root, (key,), ()) for nid, root in roots.items()]
        )
        return {nid for nid, entries in zip(roots, states, strict=True) if entries}

    async def was_joined_at(self, row: MembershipRow, position: int) -> bool:
        """Return whether the user was in the room at a position."""
        return bool(await self.joined_at([row], position))

    async def joined_at(self, rows: Iterable[MembershipRow], position: int) -> set[tuple[int, str]]:
        """Return the users who were in their room at a position, from their current memberships."""
        joined: set[tuple[int, str]] = set()
        changed: dict[int, list[StateKey]] = {}
        for row in rows:
            if row.position > position:
                changed.setdefault(row.room_nid, []).append(StateKey(MEMBER, row.user_id))
            elif row.membership == "join":
                joined.add((row.room_nid, row.user_id))
        roots = await self.at(dict.fromkeys(changed, position))
        found: dict[int, tuple[int, str]] = {}
        for room_nid, keys in changed.items():
            entries = await self._trees.get_entries(room_nid, roots[room_nid], keys)
            found.update((nid, (room_nid, user_id)) for (_, user_id), nid in entries.items())
        events = await self._events.get_events(found)
        joined.update(
            each_user_id
            for nid, each_user_id in found.items()
            if nid in events and events[nid].event.membership == "join"
        )
        return joined
