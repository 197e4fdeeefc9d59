"""A snapshot of a room: its constant data, its head, and a view of its current state."""

import msgspec

from federation.protocol.events import Event, StateKey
from federation.protocol.ids import RoomID
from federation.protocol.room_versions import RoomVersion
from federation.rooms.state_view import StateView
from storage.rooms.rooms import RoomHead, RoomRow

CREATE = StateKey("m.room.create", "")
POWER_LEVELS = StateKey("m.room.power_levels", "")


class RoomSnapshot(msgspec.Struct, frozen=True):
    """The room at one moment. The engine makes a new snapshot when the head moves."""

    room: RoomRow
    version: RoomVersion
    head: RoomHead
    state: StateView

    @property
    def room_id(self) -> RoomID:
        return RoomID(self.room.room_id)

    async def create_event(self) -> Event:
        """Return the create event of the room."""
        create = await self.state.get(CREATE)
        assert create is not None, "a stored room begins with its create event"
        return create.event
