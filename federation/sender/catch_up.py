"""Chooses the events that a server receives when it is reachable again after an outage.

For each room in which it missed events, the server receives the forward extremities of the room
and the newest missed events. The events of one room have to fit into one transaction, so older
missed events are left out. Sticky events of our users have precedence over other missed events. The
server sees from the extremities which events it lacks, and fetches them
(server-server-api#post_matrixfederationv1get_missing_eventsroomid). So the number of transactions
depends on the number of rooms, not on the number of missed events.

If the server has left the room in the meantime, it receives only missed events up to its leave.
"""

from typing import Final

from federation.peers.identity import ServerIdentity
from federation.protocol.ids import RoomID, ServerName
from federation.remote.transactions import MAX_PDUS
from federation.rooms.engine import RoomEngine
from federation.rooms.room_servers import RoomServers
from federation.rooms.sticky_events import StickyEvents
from storage.federation.destinations import DestinationStore
from storage.rooms.rooms import RoomStore

MAX_EXTREMITIES: Final = 20
"""Forward extremities of one room that a catch-up sends."""


class CatchUp:
    """Chooses the missed events to send to a server. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        rooms: RoomStore,
        engine: RoomEngine,
        servers: RoomServers,
        destinations: DestinationStore,
        sticky: StickyEvents,
        identity: ServerIdentity,
    ) -> None:
        self._rooms = rooms
        self._engine = engine
        self._servers = servers
        self._destinations = destinations
        self._sticky = sticky
        self._identity = identity

    async def get_events(
        self, server: ServerName, room_nid: int, first: int, upto: int
    ) -> list[int]:
        """Return the numbers of the events to send about one room, in their order.

        `first`: the position of the first event that the server missed. `upto`: the present stream
        position.
        """
        since = (await self._servers.in_room(room_nid)).get(server)
        if since is None:
            # the server has left: it gets the events until then, with the leaves of its users
            left = [
                position
                for user_id, position in await self._destinations.get_leaves(room_nid, first)
                if user_id.partition(":")[2] == server
            ]
            return list(
                await self._destinations.get_missed_events(
                    room_nid, first - 1, max(left, default=0), MAX_PDUS
                )
            )
        room = (await self._rooms.get_rooms_by_nid([room_nid]))[room_nid]
        head = (await self._engine.get_snapshot(RoomID(room.room_id))).head
        extremities = [nid for nid, _ in head.extremities[:MAX_EXTREMITIES]]
        rows = (await self._sticky.in_rooms({room_nid: (first - 1, upto)})).get(room_nid, [])
        sticky = [row.event_nid for row in rows if self._identity.is_local(row.sender)]
        sticky = [nid for nid in sticky if nid not in extremities][len(extremities) - MAX_PDUS :]
        missed = await self._destinations.get_missed_events(
            room_nid, max(first, since) - 1, upto, MAX_PDUS - len(extremities)
        )
        others = [nid for nid in missed if nid not in extremities and nid not in sticky]
        space = MAX_PDUS - len(extremities) - len(sticky)
        return [*sorted([*sticky, *others[-space:]] if space else sticky), *extremities]
