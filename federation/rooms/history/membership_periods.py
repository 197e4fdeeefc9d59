"""Finds the end of the last membership period of a user who has left a room.

A user may have left by an event, or state resolution may have removed them after a fork. The
position at which the membership ended is stored in both cases. The user does not see later events,
except their own membership and events that the history visibility allows.
"""

import msgspec

from federation.rooms.current_states import MEMBER
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.timelines import Timelines
from storage.events.timelines import TimelinePlace, TimelineStore
from storage.rooms.memberships import MembershipRow


class Departure(msgspec.Struct, frozen=True, gc=False):
    """The end of a user's last membership period in a room."""

    position: int
    place: TimelinePlace
    """The place right after the last event that they could see."""
    state_root: bytes | None
    """The root of the room's state as they know it."""


class MembershipPeriods:
    """Finds the ends of users' last membership periods. Use this class only on the reactor
    thread."""

    def __init__(self, *, timelines: Timelines, events: RoomEvents, store: TimelineStore) -> None:
        self._timelines = timelines
        self._events = events
        self._store = store

    async def find_departure(self, own: MembershipRow | None) -> Departure | None:
        """Return the end of a user's last membership period; None if there is none or they are in
        the room."""
        if own is None or own.left_position is None:
            return None
        left_position, room_nid = own.left_position, own.room_nid
        newest = (await self._timelines.get_newest({room_nid: left_position})).get(room_nid)
        last = None if newest is None else await self._get_event(newest.event_nid)
        root = None if last is None else last.current_root
        if (
            last is not None
            and last.position == left_position
            and await self._ends_period(last, own.user_id)
        ):
            return Departure(left_position, TimelinePlace(last.depth, last.nid), root)
        # a resolution removed them; its cause may be far behind the events that they have seen
        return Departure(
            left_position, await self._store.get_deepest_at(room_nid, left_position), root
        )

    async def _ends_period(self, event: StoredEvent, user_id: str) -> bool:
        """Return whether the event itself ends the membership of a joined user."""
        if event.event.type != MEMBER or event.event.state_key != user_id or event.replaces is None:
            return False
        before = await self._get_event(event.replaces)
        return before is not None and before.event.membership == "join"

    async def _get_event(self, nid: int) -> StoredEvent | None:
        return (await self._events.get_events([nid])).get(nid)
