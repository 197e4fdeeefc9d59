"""Finds the event closest to a time, with the help of servers that have more of a room's history.

If another server names a closer event, this server fetches and checks that event, and stores it
like every past event, with the state before it.

spec: server-server-api#get_matrixfederationv1timestamp_to_eventroomid
"""

from collections.abc import Callable
from typing import Final, Protocol

from twisted.logger import Logger

from federation.protocol.errors import Forbidden, MatrixError, RemoteError
from federation.protocol.events import parse_event
from federation.protocol.ids import EventID, ServerName
from federation.remote.events import EventClient
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.receive.missing_events import MissingEvents
from federation.rooms.snapshot import RoomSnapshot
from storage.events.timelines import Direction

MAX_SECONDS: Final = 20.0
"""After this time no other server is asked."""


class RemoteTimestamps(Protocol):
    """Asks other servers in a room for events by time."""

    async def find_nearest(
        self, room: RoomSnapshot, ts: int, direction: Direction, known: StoredEvent | None
    ) -> StoredEvent | None:
        """Return an event closest to a time, before or after it, from servers with more history.

        `known`: the closest stored event. Return None if there is no closer one. The returned event
        is stored and placed in the room.
        """
        ...


class RemoteTimestampLookup:
    """Implements `RemoteTimestamps` with the servers in the room. Use this class only on the
    reactor thread."""

    def __init__(
        self,
        *,
        events: RoomEvents,
        missing: MissingEvents,
        remote: EventClient,
        seconds: Callable[[], float],
    ) -> None:
        """`seconds`: returns the time."""
        self._events = events
        self._missing = missing
        self._remote = remote
        self._seconds = seconds
        self._log = Logger()

    async def find_nearest(
        self, room: RoomSnapshot, ts: int, direction: Direction, known: StoredEvent | None
    ) -> StoredEvent | None:
        """Return a placed event that is closer than the known one; None if no server has one."""
        until = self._seconds() + MAX_SECONDS
        distance = None if known is None else abs(known.event.origin_server_ts - ts)
        for server in await self._missing.choose_servers(room):
            try:
                return await self._request(server, room, ts, direction, distance)
            except (RemoteError, Forbidden) as error:
                self._log.info(
                    "{server} finds no event by its time: {error}", server=server, error=str(error)
                )
                self._missing.record_failure(server, error)
            if self._seconds() > until:
                break
        return None

    async def _request(
        self,
        server: ServerName,
        room: RoomSnapshot,
        ts: int,
        direction: Direction,
        distance: int | None,
    ) -> StoredEvent | None:
        named = await self._remote.get_event_at(server, room.room_id, ts, direction.value)
        if distance is not None and abs(named.origin_server_ts - ts) >= distance:
            return None
        stored = await self._get_or_fetch(server, room, named.event_id)
        at = stored.event.origin_server_ts
        is_on_that_side = at <= ts if direction is Direction.BACKWARDS else at >= ts
        if not is_on_that_side or (distance is not None and abs(at - ts) >= distance):
            raise RemoteError(server, "the event has another time than it said", retryable=False)
        return stored

    async def _get_or_fetch(
        self, server: ServerName, room: RoomSnapshot, event_id: EventID
    ) -> StoredEvent:
        """Return the placed event; fetch it if needed. Raises RemoteError."""
        stored = await self._events.get_event(room.room.room_nid, event_id)
        if stored is None or stored.is_outlier:
            try:
                event = parse_event(room.version, await self._remote.get_event(server, event_id))
            except MatrixError as error:
                raise RemoteError(
                    server, f"the event is invalid: {error.text}", retryable=False
                ) from error
            if event.event_id != event_id or event.room_id != room.room_id:
                raise RemoteError(server, "the answer is another event", retryable=False)
            await self._missing.receive(
                room.room_id, [event], server, is_past=True, walk=False, seconds=MAX_SECONDS
            )
            stored = await self._events.get_event(room.room.room_nid, event_id)
        if stored is None or not stored.in_timeline:
            raise RemoteError(server, "the event is not part of the room", retryable=False)
        return stored
