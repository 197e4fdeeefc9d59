"""Finds whether this server is in a room. If not, it does not know the room's current state, and
must not serve the room.

After the last local user has left a room, this server gets no more events of the room, but remote
members may still change it. So this server counts as in the room in two cases: a local user is a
member, or the stored state is complete and has no members at all, so nobody else can change it.

spec: server-server-api#joining-rooms
"""

from federation.protocol.errors import NotFound
from federation.protocol.ids import RoomID, ServerName
from federation.rooms.engine import RoomEngine
from federation.rooms.memberships import Memberships
from federation.rooms.server_acl_checks import ServerACLChecks
from federation.rooms.snapshot import RoomSnapshot


class ServerInRoom:
    """Finds rooms that this server is in. Use this class only on the reactor thread."""

    def __init__(
        self, *, engine: RoomEngine, memberships: Memberships, access: ServerACLChecks
    ) -> None:
        self._engine = engine
        self._memberships = memberships
        self._access = access

    async def find(self, room_id: RoomID) -> RoomSnapshot | None:
        """Return the room, if this server is in it."""
        snapshot = await self._engine.find_snapshot(room_id)
        return snapshot if snapshot is not None and await self.is_in(snapshot) else None

    async def is_in(self, snapshot: RoomSnapshot) -> bool:
        """Return whether this server knows the current state of the room."""
        if not snapshot.head.extremities:
            return False
        # a room with partial state may have members that we do not know
        is_empty = snapshot.head.joined_count == 0 and snapshot.head.partial_join is None
        return is_empty or bool(await self._memberships.local_members(snapshot.room.room_nid))

    async def find_for(self, origin: ServerName, room_id: RoomID) -> RoomSnapshot | None:
        """Return the room for another server, in it or not, if this server is in it.

        Raises Forbidden (by the room's server ACL).
        """
        snapshot = await self.find(room_id)
        if snapshot is not None:
            await self._access.check(snapshot, origin)
        return snapshot

    async def get_for(self, origin: ServerName, room_id: RoomID) -> RoomSnapshot:
        """Return the same as `find_for`, if the room's state is complete.

        Raises NotFound, Forbidden (by the room's server ACL).
        """
        snapshot = await self.find_for(origin, room_id)
        if snapshot is None:
            raise NotFound("This server is not in the room")
        if snapshot.head.partial_join is not None:
            raise NotFound("This server does not have the room's complete state yet")
        return snapshot
