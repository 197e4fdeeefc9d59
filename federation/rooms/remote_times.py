"""Which event of a room is nearest to a time, where other servers have more of the room's past than this one.

The event that another server names is fetched and takes its place in the room, with the state before it, as any other of the
past: what cannot be checked is not shown.

spec: server-server-api#get_matrixfederationv1timestamp_to_eventroomid
"""

from typing import Final

from twisted.logger import Logger

from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.ids import EventID, ServerName
from federation.remote.events import RemoteEvents
from federation.rooms.missing import MissingEvents, Pool
from federation.rooms.room_events import RoomEvents, StoredEvent
from federation.rooms.snapshots import RoomSnapshot
from storage.timelines import Direction

SERVERS_ASKED: Final = 3


class RemoteEventTimes:
    """Asks other servers in the room: `RemoteTimes`. For the reactor thread."""

    _log = Logger()

    def __init__(self, remote: RemoteEvents, missing: MissingEvents, events: RoomEvents) -> None:
        self._remote = remote
        self._missing = missing
        self._events = events

    async def find_nearest(
        self, room: RoomSnapshot, ts: int, direction: Direction, known: StoredEvent | None
    ) -> StoredEvent | None:
        """As `RemoteTimes.find_nearest`."""
        for server in (await self._missing.choose_servers(room))[:SERVERS_ASKED]:
            try:
                named = await self._remote.get_event_at(server, room.room_id, ts, direction.value)
                if not _is_nearer(named.origin_server_ts, ts, direction, known):
                    return None
                found = await self._find(server, room, named.event_id)
            except (RemoteError, MatrixError) as error:
                self._log.info("{server} names no event by its time: {error}", server=server, error=str(error))
                continue
            if found is not None and _is_nearer(found.event.origin_server_ts, ts, direction, known):
                return found
        return None

    async def _find(self, server: ServerName, room: RoomSnapshot, event_id: EventID) -> StoredEvent | None:
        """The event, in its place in the room."""
        stored = await self._events.get_event(room.room.room_nid, event_id)
        if stored is None or stored.is_outlier:
            pdu = await self._remote.get_event(server, event_id)
            event = Pool(room.version, room.room_id).parse([pdu]).get(event_id)
            if event is None:
                return None
            await self._missing.take_in(room.room_id, [event], server, past=True, walk=False)
            stored = await self._events.get_event(room.room.room_nid, event_id)
        return stored if stored is not None and stored.in_timeline else None


def _is_nearer(at: int, ts: int, direction: Direction, known: StoredEvent | None) -> bool:
    """Whether a time is on the right side of `ts`, and closer to it than an event that is known."""
    if (at < ts) if direction is Direction.FORWARDS else (at > ts):
        return False
    return known is None or abs(at - ts) < abs(known.event.origin_server_ts - ts)
