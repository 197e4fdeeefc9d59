"""Whether this server is in a room: only then does it know the room as it is, and can speak for it.

A room from which everybody of this server has gone is known as it was then. It may have moved on
since, unless nobody was left in it at all.

spec: server-server-api#joining-rooms
"""

from federation.protocol.errors import NotFound
from federation.protocol.ids import RoomID, ServerName
from federation.rooms.engine import RoomEngine
from federation.rooms.memberships import Memberships
from federation.rooms.server_access import ServerAccess
from federation.rooms.snapshot import RoomSnapshot


class Residence:
    """Finds rooms that this server is in. For the reactor thread."""

    def __init__(self, engine: RoomEngine, memberships: Memberships, access: ServerAccess) -> None:
        self._engine = engine
        self._memberships = memberships
        self._access = access

    async def find(self, room_id: RoomID) -> RoomSnapshot | None:
        """The room, if this server is in it."""
        snapshot = await self._engine.find_snapshot(room_id)
        return snapshot if snapshot is not None and await self.is_in(snapshot) else None

    async def is_in(self, snapshot: RoomSnapshot) -> bool:
        """Whether this server knows the room as it is now."""
        if not snapshot.head.extremities:
            return False
        # of a room with a part of its state, others are in it whom nobody has told us of
        is_empty = snapshot.head.joined_count == 0 and snapshot.head.partial_join is None
        return is_empty or bool(await self._memberships.local_members(snapshot.room.room_nid))

    async def find_for(self, origin: ServerName, room_id: RoomID) -> RoomSnapshot | None:
        """The room, if this server is in it, for another server that need not be. Raises Forbidden
        (the room's server ACL)."""
        snapshot = await self.find(room_id)
        if snapshot is not None:
            await self._access.check(snapshot, origin)
        return snapshot

    async def get_for(self, origin: ServerName, room_id: RoomID) -> RoomSnapshot:
        """As `find_for`, where all of the room's state is here. Raises NotFound, Forbidden (the
        room's server ACL)."""
        snapshot = await self.find_for(origin, room_id)
        if snapshot is None:
            raise NotFound("This server is not in the room")
        if snapshot.head.partial_join is not None:
            raise NotFound("This server does not know all of the room's state yet")
        return snapshot
