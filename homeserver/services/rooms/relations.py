"""Returns pages of the events that relate to an event, and of the threads of a room.

spec: client-server-api#relationships-api, client-server-api#querying-threads-in-a-room
"""

from typing import Any, Final

from federation.protocol.ids import EventID, RoomID
from federation.rooms.visibility import VisibleEvent, without_content
from homeserver.api.requester import Requester
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.filters.event_filters import RoomEventFilter
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.rooms.reading import END, MAX_PAGES_READ, RoomReading
from homeserver.services.streams.sync_tokens import format_room_token
from storage.events.relations import RelationFilter, RelationStore
from storage.events.timelines import START, Direction, TimelinePlace

MAX_RELATIONS: Final = 100
"""The maximum number of events of a page."""
MAX_LEVELS: Final = 3
"""The maximum number of levels of relations that are followed: events that relate to the event,
events that relate to those, and so on."""
MAX_DESCENDANTS: Final = 10_000
"""The maximum number of events on all levels together, as each page reads them all. If there are
more, fewer levels are followed, and the response states how many."""
ALL_EVENTS: Final = RoomEventFilter()


class RoomRelations:
    """Reads relations for users who may read the room."""

    def __init__(
        self,
        *,
        store: RelationStore,
        reading: RoomReading,
        client_events: ClientEvents,
        ignored_users: IgnoredUsers,
    ) -> None:
        self._store = store
        self._reading = reading
        self._client_events = client_events
        self._ignored = ignored_users

    async def get_relations(
        self,
        caller: Requester,
        room_id: RoomID,
        event_id: EventID,
        rel_type: str | None,
        event_type: str | None,
        direction: Direction,
        from_: str | None,
        to: str | None,
        limit: int,
        recurse: bool | None,
    ) -> dict[str, Any]:
        """Return a page of the events that relate to an event. Raises Forbidden, and NotFound also
        if the caller may not see the event."""
        reader = await self._reading.find_access(caller.user_id, room_id)
        await self._reading.get_visible_event(caller, reader, event_id)
        place = END if direction is Direction.BACKWARDS else START
        if from_ is not None:
            place = await self._reading.find_place(reader, from_)
        end = None if to is None else await self._reading.find_place(reader, to)
        limit = max(1, min(limit, MAX_RELATIONS))
        room_nid = reader.snapshot.room.room_nid
        filter_ = RelationFilter(rel_type, event_type, MAX_LEVELS if recurse else 1)
        if recurse:
            levels = await self._store.find_levels(room_nid, event_id, filter_, MAX_DESCENDANTS)
            filter_ = RelationFilter(rel_type, event_type, levels)
        shown: list[VisibleEvent] = []
        more = True
        for _ in range(MAX_PAGES_READ):
            requested = limit - len(shown)
            page = await self._store.get_page(
                room_nid, event_id, filter_, place, end, direction, requested + 1
            )
            more = len(page) > requested
            page = page[:requested]
            shown += await self._reading.get_visible(
                caller, reader, [nid for _, nid in page], ALL_EVENTS
            )
            if page:
                place = page[-1][0] if direction is Direction.FORWARDS else _before(page[-1][0])
            if not more or len(shown) >= limit:
                break
        chunk = await self._client_events.present(
            caller.user_id, caller.device_id, shown, with_room_id=True
        )
        response: dict[str, Any] = {"chunk": chunk}
        if more:
            response["next_batch"] = format_room_token(place)
        if from_ is not None:
            response["prev_batch"] = from_
        if recurse is not None:
            response["recursion_depth"] = filter_.levels
        return response

    async def get_threads(
        self,
        caller: Requester,
        room_id: RoomID,
        from_: str | None,
        limit: int,
        *,
        participated: bool,
    ) -> dict[str, Any]:
        """Return a page of the roots of a room's threads, those with the latest events first.
        Raises Forbidden.

        A root that was removed, or whose sender the caller ignores, comes without its content, as
        if redacted. A former member gets the threads as they were when they left.
        """
        reader = await self._reading.find_access(caller.user_id, room_id)
        place = END if from_ is None else await self._reading.find_place(reader, from_)
        end = None if reader.departure is None else reader.departure.place
        limit = max(1, min(limit, MAX_RELATIONS))
        ignored = await self._ignored.of_user(caller.user_id)
        shown: list[VisibleEvent] = []
        more = True
        for _ in range(MAX_PAGES_READ):
            requested = limit - len(shown)
            page = await self._store.get_threads(
                reader.snapshot.room.room_nid,
                place,
                requested + 1,
                caller.user_id,
                ignored,
                participated=participated,
                end=end,
            )
            more = len(page) > requested
            page = page[:requested]
            shown += await self._reading.get_visible_roots(
                caller, reader, [root for _, root in page]
            )
            if page:
                place = _before(page[-1][0])
            if not more or len(shown) >= limit:
                break
        shown = [
            without_content(each) if each.event.event.sender in ignored else each for each in shown
        ]
        chunk = await self._client_events.present(
            caller.user_id, caller.device_id, shown, with_room_id=True
        )
        response: dict[str, Any] = {"chunk": chunk}
        if more:
            response["next_batch"] = format_room_token(place)
        return response


def _before(place: TimelinePlace) -> TimelinePlace:
    return TimelinePlace(place.depth, place.event_nid - 1)
