"""Where somebody's stay in a room ended that they are not in any more: what came later is not for
them.

At which position it ended is kept with their membership, whether they left by an event or the
resolution of a fork took them out. Nothing later is for them, but their own membership and what the
history visibility says of events.
"""

import msgspec

from federation.rooms.current_states import MEMBER
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.timelines import Timelines
from storage.events.timelines import Place, TimelineStore
from storage.rooms.memberships import MembershipRow


class Departure(msgspec.Struct, frozen=True, gc=False):
    """Where the last stay of a user in a room ended."""

    position: int
    place: Place
    """Right after the last event that was for them."""
    state_root: bytes | None
    """Root of the room's state, as they know it."""


class Stays:
    """Finds departures. For the reactor thread."""

    def __init__(self, timelines: Timelines, events: RoomEvents, store: TimelineStore) -> None:
        self._timelines = timelines
        self._events = events
        self._store = store

    async def find_departure(self, own: MembershipRow | None) -> Departure | None:
        """Where the last stay of a user ended; None for who was never in the room, or is in it
        now."""
        if own is None or own.left_position is None:
            return None
        end, room_nid = own.left_position, own.room_nid
        newest = (await self._timelines.get_newest({room_nid: end})).get(room_nid)
        last = None if newest is None else await self._find(newest.event_nid)
        root = None if last is None else last.current_root
        if last is not None and last.position == end and await self._ends_stay(last, own.user_id):
            return Departure(end, Place(last.depth, last.nid), root)
        # a resolution took them out: what made it may stand far behind what they have seen
        return Departure(end, await self._store.get_deepest_at(room_nid, end), root)

    async def _ends_stay(self, event: StoredEvent, user_id: str) -> bool:
        """Whether it says itself that the user, who was in the room before it, is in it no more."""
        if event.event.type != MEMBER or event.event.state_key != user_id or event.replaces is None:
            return False
        before = await self._find(event.replaces)
        return before is not None and before.event.membership == "join"

    async def _find(self, nid: int) -> StoredEvent | None:
        return (await self._events.get_events([nid])).get(nid)
