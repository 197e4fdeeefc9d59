"""Stripped state of rooms that a user is invited to or knocks on."""

from collections.abc import Sequence

from federation.protocol.events import Event, StateKey
from federation.protocol.ids import UserID
from federation.protocol.stripped_state import StrippedEvent, stripped_state_keys
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.joins.out_of_room import OutOfRoomMemberships, is_out_of_room
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomRow


class InvitedRooms:
    """Reads stripped state, and the user's own membership event."""

    def __init__(
        self, *, engine: RoomEngine, events: RoomEvents, out_of_room: OutOfRoomMemberships
    ) -> None:
        self._engine = engine
        self._events = events
        self._out_of_room = out_of_room

    async def get_stripped(self, row: MembershipRow) -> Sequence[Event | StrippedEvent]:
        """Return the stripped state of the room at the time of the invite or knock, with the user's
        membership.

        spec: client-server-api#stripped-state
        """
        if is_out_of_room(row):
            membership = await self._out_of_room.find(row.room_nid, UserID(row.user_id))
            return () if membership is None else membership.state
        own = (await self._events.get_events([row.event_nid]))[row.event_nid]
        inviter = row.sender if row.membership == "invite" else None
        keys = [*stripped_state_keys(inviter), StateKey("m.room.member", row.user_id)]
        state = await self._engine.view(row.room_nid, own.state_root).load(keys)
        return [state[key].event for key in keys if key in state]

    async def find_membership_event(self, room: RoomRow, row: MembershipRow) -> StoredEvent | None:
        """Return the event of the user's own membership."""
        if is_out_of_room(row):
            return await self._out_of_room.find_event(room, row)
        return (await self._events.get_events([row.event_nid])).get(row.event_nid)
