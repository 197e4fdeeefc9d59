"""Checks the server ACL of a room when another server sends or requests data of the room.

spec: server-server-api#server-access-control-lists-acls
"""

from collections.abc import Collection

from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, ServerName
from federation.protocol.server_acl import ServerACL
from federation.rooms.engine import RoomEngine
from federation.rooms.memberships import Memberships
from federation.rooms.room_servers import RoomServers
from federation.rooms.snapshot import RoomSnapshot
from storage.cache import LRU
from storage.rooms.rooms import RoomStore

SERVER_ACL = StateKey("m.room.server_acl", "")
MAX_LISTS = 1000
"""Parsed ACLs in the cache."""


class ServerACLChecks:
    """Evaluates server ACLs through a cache. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        engine: RoomEngine,
        rooms: RoomStore,
        memberships: Memberships,
        servers: RoomServers,
    ) -> None:
        self._engine = engine
        self._rooms = rooms
        self._memberships = memberships
        self._servers = servers
        self._lists: LRU[tuple[int, bytes], ServerACL] = LRU(max_entries=MAX_LISTS)

    async def is_allowed(self, snapshot: RoomSnapshot, server: ServerName) -> bool:
        """Return whether the room's ACL allows the server; without an ACL all are allowed."""
        stored = await snapshot.state.get(SERVER_ACL)
        if stored is None:
            return True
        key = (
            stored.nid,
            stored.pdu,
        )  # a redaction removes the content, and so every permission
        acl = self._lists.get(key)
        if acl is None:
            acl = ServerACL(stored.event.content)
            self._lists.put(key, acl)
        return acl.allows(server)

    async def get_room(self, server: ServerName, room_id: RoomID) -> RoomSnapshot:
        """Return a room that both this server and another server are in. Raises NotFound,
        Forbidden."""
        snapshot = await self._engine.find_snapshot(room_id)
        if snapshot is None or not await self._memberships.local_members(snapshot.room.room_nid):
            raise NotFound("This server is not in the room")
        await self.check(snapshot, server)
        if server not in await self._servers.in_room(snapshot.room.room_nid):
            raise Forbidden("You are not in the room")
        return snapshot

    async def check(self, snapshot: RoomSnapshot, server: ServerName) -> None:
        """Check the room's ACL. Raises Forbidden."""
        if not await self.is_allowed(snapshot, server):
            raise Forbidden(f"The server ACL of this room denies {server}")

    async def find_allowed(self, server: ServerName, room_ids: Collection[RoomID]) -> set[RoomID]:
        """Return the rooms that another server is in and whose ACL allows it.

        Makes two queries for all rooms that it is not in, since a server may name any rooms.
        """
        rooms = await self._rooms.get_rooms(room_id for room_id in room_ids if "\0" not in room_id)
        servers_of_rooms = await self._servers.in_rooms(room.room_nid for room in rooms.values())
        shared = [
            RoomID(room_id)
            for room_id, room in rooms.items()
            if server in servers_of_rooms[room.room_nid]
        ]
        return {room_id for room_id in shared if await self.is_allowed_in(room_id, server)}

    async def is_allowed_in(self, room_id: RoomID, server: ServerName) -> bool:
        """Return the same as `is_allowed` for a room ID; True for an unknown room."""
        snapshot = await self._engine.find_snapshot(room_id)
        return snapshot is None or await self.is_allowed(snapshot, server)
