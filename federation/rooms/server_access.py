"""Which servers may have to do with a room, by its server ACL: asked of whoever sends or asks something about the room.

spec: server-server-api#server-access-control-lists-acls
"""

from collections import OrderedDict

from federation.protocol.errors import Forbidden
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, ServerName
from federation.protocol.server_acl import ServerACL
from federation.rooms.engine import RoomEngine
from federation.rooms.snapshots import RoomSnapshot

SERVER_ACL = StateKey("m.room.server_acl", "")
KEPT_LISTS = 1000
"""How many evaluated lists are remembered."""


class ServerAccess:
    """Evaluates the lists of rooms, and remembers them evaluated. For the reactor thread."""

    def __init__(self, engine: RoomEngine) -> None:
        self._engine = engine
        self._lists: OrderedDict[tuple[int, int | None], ServerACL] = OrderedDict()

    async def is_allowed(self, snapshot: RoomSnapshot, server: ServerName) -> bool:
        """Whether the room's list lets the server take part; a room without a list lets everyone."""
        stored = await snapshot.state.get(SERVER_ACL)
        if stored is None:
            return True
        key = (stored.nid, stored.redacted_by)  # a redaction takes the content away, and with it the permission
        acl = self._lists.get(key)
        if acl is None:
            acl = self._lists[key] = ServerACL(stored.event.content)
            if len(self._lists) > KEPT_LISTS:
                self._lists.popitem(last=False)
        return acl.allows(server)

    async def check(self, snapshot: RoomSnapshot, server: ServerName) -> None:
        """Raises Forbidden."""
        if not await self.is_allowed(snapshot, server):
            raise Forbidden(f"The server ACL of this room denies {server}")

    async def is_allowed_in(self, room_id: RoomID, server: ServerName) -> bool:
        """As `is_allowed`, by the room's id; no list is known of a room that is not known."""
        snapshot = await self._engine.find_snapshot(room_id)
        return snapshot is None or await self.is_allowed(snapshot, server)
