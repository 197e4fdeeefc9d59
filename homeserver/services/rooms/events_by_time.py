"""Finds the event of a room that is nearest to a time, before or after it.

spec: client-server-api#get_matrixclientv1roomsroomidtimestamp_to_event
"""

from datetime import UTC, datetime
from typing import Any, Final

from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.ids import RoomID
from federation.rooms.events import StoredEvent
from federation.rooms.history.remote_timestamps import RemoteTimestamps
from homeserver.api.requester import Requester
from homeserver.services.filters.event_filters import RoomEventFilter
from homeserver.services.rooms.reading import ReadAccess, RoomReading
from storage.events.timelines import Direction, TimelineStore

FIRST_PAGE: Final = 5
"""The reader may nearly always see the first event that is found."""
PAGE: Final = 200
MAX_PAGES: Final = 20
"""The maximum number of pages that are read when the reader may see no event of a page."""
MAX_TS: Final = 2**53 - 1

_ALL_EVENTS: Final = RoomEventFilter()


class EventsByTime:
    """Finds events by their timestamps."""

    def __init__(
        self, *, reading: RoomReading, timelines: TimelineStore, remote: RemoteTimestamps
    ) -> None:
        self._reading = reading
        self._timelines = timelines
        self._remote = remote

    async def get_nearest(
        self, caller: Requester, room_id: RoomID, ts: int, direction: Direction
    ) -> dict[str, Any]:
        """Return the nearest event that the caller may see. Raises InvalidParam, Forbidden,
        NotFound."""
        if not 0 <= ts <= MAX_TS:
            raise InvalidParam("ts is a time in milliseconds since 1970")
        reader = await self._reading.find_access(caller.user_id, room_id)
        found = await self._find_local(caller, reader, ts, direction)
        if await self._timelines.get_backward_extremities(reader.snapshot.room.room_nid):
            closer = await self._remote.find_nearest(reader.snapshot, ts, direction, found)
            if closer is not None and await self._reading.get_visible(
                caller, reader, [closer.nid], _ALL_EVENTS
            ):
                found = closer
        if found is None:
            way = "after" if direction is Direction.FORWARDS else "before"
            raise NotFound(f"You can see no event of this room {way} {_format_time(ts)}")
        return {"event_id": found.event.event_id, "origin_server_ts": found.event.origin_server_ts}

    async def _find_local(
        self, caller: Requester, reader: ReadAccess, ts: int, direction: Direction
    ) -> StoredEvent | None:
        place: tuple[int, int] | None = None
        for number in range(MAX_PAGES):
            limit = PAGE if number else FIRST_PAGE
            page = await self._timelines.get_by_time(
                reader.snapshot.room.room_nid, ts, direction, place, limit
            )
            seen = await self._reading.get_visible(
                caller, reader, [nid for _, nid in page], _ALL_EVENTS
            )
            if seen:
                return seen[0].event
            if len(page) < limit:
                return None
            place = page[-1]
        return None


def _format_time(ts: int) -> str:
    try:
        return datetime.fromtimestamp(ts / 1000, UTC).isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):
        return str(ts)
