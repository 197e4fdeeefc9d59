"""The children of events, page by page, and the threads of rooms.

spec: client-server-api#relationships-api, client-server-api#querying-threads-in-a-room
"""

from typing import Any, Final

from federation.protocol.ids import EventID, RoomID
from federation.rooms.visibility import Seen, without_content
from homeserver.api.requester import Requester
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.filters.event_filters import RoomEventFilter
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.rooms.reading import END, MAX_PAGES_LOOKED_AT, RoomReading
from homeserver.services.streams.sync_tokens import format_place
from storage.events.relations import RelationStore, Wanted
from storage.events.timelines import START, Direction, Place

MAX_RELATIONS: Final = 100
"""Of one page."""
MAX_LEVELS: Final = 3
"""How far children of children are followed."""
MOST_DESCENDANTS: Final = 10_000
"""Of an event for that: each page of them looks at them all. Where there are more only those are
told that are fewer steps away, and the answer says so."""
EVERYTHING: Final = RoomEventFilter()


class RoomRelations:
    """Reads relations for those who may read the room."""

    def __init__(
        self,
        store: RelationStore,
        reading: RoomReading,
        client_events: ClientEvents,
        ignored: IgnoredUsers,
    ) -> None:
        self._store = store
        self._reading = reading
        self._client_events = client_events
        self._ignored = ignored

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
        """A page of an event's children. Raises NotFound, also where the caller may not see the
        event; Forbidden."""
        reader = await self._reading.find_reader(caller.user_id, room_id)
        await self._reading.see_one(caller, reader, event_id)
        place = END if direction is Direction.BACKWARDS else START
        if from_ is not None:
            place = await self._reading.find_place(reader, from_)
        end = None if to is None else await self._reading.find_place(reader, to)
        limit = max(1, min(limit, MAX_RELATIONS))
        room_nid = reader.snapshot.room.room_nid
        wanted = Wanted(rel_type, event_type, MAX_LEVELS if recurse else 1)
        if recurse:
            levels = await self._store.find_levels(room_nid, event_id, wanted, MOST_DESCENDANTS)
            wanted = Wanted(rel_type, event_type, levels)
        shown: list[Seen] = []
        more = True
        for _ in range(MAX_PAGES_LOOKED_AT):
            asked = limit - len(shown)
            page = await self._store.get_page(
                room_nid, event_id, wanted, place, end, direction, asked + 1
            )
            more = len(page) > asked
            page = page[:asked]
            shown += await self._reading.see(caller, reader, [nid for _, nid in page], EVERYTHING)
            if page:
                place = page[-1][0] if direction is Direction.FORWARDS else _before(page[-1][0])
            if not more or len(shown) >= limit:
                break
        chunk = await self._client_events.present(
            caller.user_id, caller.device_id, shown, with_room_id=True
        )
        answer: dict[str, Any] = {"chunk": chunk}
        if more:
            answer["next_batch"] = format_place(place)
        if from_ is not None:
            answer["prev_batch"] = from_
        if recurse is not None:
            answer["recursion_depth"] = wanted.levels
        return answer

    async def get_threads(
        self,
        caller: Requester,
        room_id: RoomID,
        from_: str | None,
        limit: int,
        *,
        participated: bool,
    ) -> dict[str, Any]:
        """A page of the roots of a room's threads, those with the latest events first. Raises
        Forbidden.

        Of roots that are gone, or that users whom the caller ignores have sent, there is what a
        redaction leaves. Who has left finds the threads as they were then.
        """
        reader = await self._reading.find_reader(caller.user_id, room_id)
        place = END if from_ is None else await self._reading.find_place(reader, from_)
        end = None if reader.departure is None else reader.departure.place
        limit = max(1, min(limit, MAX_RELATIONS))
        ignored = await self._ignored.of_user(caller.user_id)
        shown: list[Seen] = []
        more = True
        for _ in range(MAX_PAGES_LOOKED_AT):
            asked = limit - len(shown)
            page = await self._store.get_threads(
                reader.snapshot.room.room_nid,
                place,
                asked + 1,
                caller.user_id,
                ignored,
                participated=participated,
                end=end,
            )
            more = len(page) > asked
            page = page[:asked]
            shown += await self._reading.see_roots(caller, reader, [root for _, root in page])
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
        answer: dict[str, Any] = {"chunk": chunk}
        if more:
            answer["next_batch"] = format_place(place)
        return answer


def _before(place: Place) -> Place:
    return Place(place.depth, place.event_nid - 1)
