"""Full-text search in rooms.

Laws:
- A response does not reveal events that the caller may not see, nor that they exist. The index
  only suggests events, and `RoomReading` decides about each, as for every other read. An edited
  message is found by its latest text, by users who may see both the message and the edit.
- The work of a request is bounded. One index query returns at most `MAX_HITS` hits. The events of
  at most `MAX_EXAMINED` of these hits are read. If hits are left, the response has a token for the
  next page.

spec: client-server-api#server-side-search
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec
from twisted.internet.defer import DeferredSemaphore

from federation.protocol.errors import Forbidden, InvalidParam, MatrixError
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.history.membership_periods import Departure, MembershipPeriods
from federation.rooms.history.retention import RoomRetentionCache
from federation.rooms.memberships import Memberships
from federation.rooms.visibility import VisibleEvent
from homeserver.api.requester import Requester
from homeserver.services.filters.event_filters import RoomEventFilter
from homeserver.services.rooms.reading import ReadAccess, RoomReading
from homeserver.services.search.indexing import KINDS_BY_KEY
from homeserver.services.search.request import (
    MAX_TERM,
    Categories,
    GroupKey,
    RoomEventsCriteria,
    SearchCursor,
    format_cursor,
    parse_cursor,
)
from homeserver.services.search.results import SearchResponses, SearchResult
from homeserver.services.text.search_terms import make_ranker, parse_terms
from homeserver.services.text.text_folding import TextFolding
from storage.engine.text_index import MAX_ROOM_KEYS, SearchTerm
from storage.events.timelines import TimelinePlace
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomStore
from storage.search.search import SearchHit, SearchStore, TextQuery

CREATE: Final = StateKey("m.room.create", "")
MAX_HITS: Final = 2_000
"""Hits that are read from the index and sorted together."""
MAX_EXAMINED: Final = 1_000
"""Hits whose events are read for one response."""
CHUNK: Final = 100
"""Hits whose events are read together."""
DEFAULT_RESULTS: Final = 10
MAX_RESULTS: Final = 100
MAX_WITH_STATE: Final = 10
"""Results in a response that includes the state of their rooms."""
CONCURRENT_QUERIES: Final = 2
"""Concurrent index queries: this leaves a reader thread for other requests."""
MAX_TERMS: Final = 32
MAX_PREDECESSORS: Final = 200
"""Rooms whose predecessors are looked up for one search."""


class _Search(msgspec.Struct, frozen=True):
    """A parsed search request."""

    caller: Requester
    criteria: RoomEventsCriteria
    terms: Sequence[SearchTerm]
    wanted: RoomEventFilter
    """The filter of the events, without rooms: these are chosen already."""
    own: Mapping[int, MembershipRow]
    """The caller's memberships by room."""
    readers: dict[int, "_RoomAccess | None"]
    """The caller's access by room, as far as it was looked up."""


class _RoomAccess(msgspec.Struct, frozen=True):
    """A room that the caller may read, and the place where they left it, if so."""

    reader: ReadAccess
    departure: Departure | None


class MessageSearch:
    """Searches events that the caller may see."""

    # More than ten: a result passes the rules of visibility and retention.
    def __init__(
        self,
        *,
        store: SearchStore,
        folding: TextFolding,
        engine: RoomEngine,
        events: RoomEvents,
        memberships: Memberships,
        rooms: RoomStore,
        membership_periods: MembershipPeriods,
        reading: RoomReading,
        responses: SearchResponses,
        lifetimes: RoomRetentionCache | None,
        enabled: bool,
    ) -> None:
        self._store = store
        self._folding = folding
        self._engine = engine
        self._events = events
        self._memberships = memberships
        self._rooms = rooms
        self._membership_periods = membership_periods
        self._reading = reading
        self._responses = responses
        self._lifetimes = lifetimes
        self._enabled = enabled
        self._semaphore = DeferredSemaphore(CONCURRENT_QUERIES)

    async def get_results(
        self, caller: Requester, categories: Categories, next_batch: str | None
    ) -> dict[str, Any]:
        """Return a page of results. Raises InvalidParam; MatrixError if search is disabled."""
        if not self._enabled:
            raise MatrixError("Search is disabled on this server")
        criteria = categories.room_events
        if criteria is None:
            return {"search_categories": {}}
        terms = self._parse(criteria.search_term)
        cursor = (
            parse_cursor(next_batch)
            if next_batch is not None
            else SearchCursor(await self._store.get_latest_nid())
        )
        search = _Search(
            caller,
            criteria,
            terms,
            msgspec.structs.replace(criteria.filter, rooms=None, not_rooms=()),
            await self._memberships.of_user(caller.user_id),
            {},
        )
        query = await self._make_query(search, cursor)
        ranker = make_ranker(terms) if criteria.order_by == "rank" else None
        hits = await self._get_hits(query, ranker)
        max_results = MAX_WITH_STATE if criteria.include_state else MAX_RESULTS
        limit = min(max(1, criteria.filter.limit or DEFAULT_RESULTS), max_results)
        return await self._respond(search, hits, cursor, limit)

    async def _get_hits(
        self, query: TextQuery, ranker: Callable[[str], int] | None
    ) -> list[SearchHit]:
        await self._semaphore.acquire()
        try:
            return await self._store.get_hits(query, MAX_HITS, ranker)
        finally:
            self._semaphore.release()

    def _parse(self, text: str) -> list[SearchTerm]:
        if len(text) > MAX_TERM:
            raise InvalidParam(f"search_term may have at most {MAX_TERM} characters")
        terms = parse_terms(self._folding, text)
        if len(terms) > MAX_TERMS:
            raise InvalidParam(f"search_term may have at most {MAX_TERMS} words")
        return terms

    async def _make_query(self, search: _Search, cursor: SearchCursor) -> TextQuery:
        wanted = search.criteria.filter
        rooms = await self._choose_rooms(search, wanted.rooms)
        senders = None if wanted.senders is None else set(wanted.senders)
        if cursor.group == "room_id":
            (nid,) = await self._room_nids([cursor.value]) or [-1]
            rooms = {nid} if rooms is None or nid in rooms else set()
        elif cursor.group == "sender":
            senders = {cursor.value} if senders is None or cursor.value in senders else set()
        keys = search.criteria.keys
        return TextQuery(
            search.caller.user_id,
            search.terms,
            rooms,
            await self._room_nids(wanted.not_rooms),
            None if keys is None else {KINDS_BY_KEY[key] for key in keys},
            senders,
            wanted.not_senders,
            cursor.window,
        )

    async def _choose_rooms(self, search: _Search, wanted: Sequence[str] | None) -> set[int] | None:
        """Return the rooms to search. None: all rooms that the user is or was in, by the index."""
        if wanted is None:
            if len(search.own) > MAX_ROOM_KEYS:
                return None
            return {nid for nid, row in search.own.items() if not row.forgotten}
        nids = list(await self._room_nids(wanted))
        # a search in a room includes its predecessors
        for nid in islice(nids, MAX_PREDECESSORS):  # reaches the rooms that are added here, too
            nids += [each for each in await self._find_predecessor(nid) if each not in nids]
        return {nid for nid in nids if nid in search.own and not search.own[nid].forgotten}

    async def _find_predecessor(self, nid: int) -> Sequence[int]:
        """Return the predecessor of a room if this server knows it."""
        room = (await self._rooms.get_rooms_by_nid([nid]))[nid]
        snapshot = await self._engine.find_snapshot(RoomID(room.room_id))
        create = await snapshot.state.get(CREATE) if snapshot is not None else None
        predecessor = create.event.content.get("predecessor") if create is not None else None
        room_id = predecessor.get("room_id") if isinstance(predecessor, dict) else None
        return await self._room_nids([room_id]) if isinstance(room_id, str) else []

    async def _room_nids(self, room_ids: Iterable[str]) -> Sequence[int]:
        return [row.room_nid for row in (await self._rooms.get_rooms(room_ids)).values()]

    async def _respond(
        self, search: _Search, hits: Sequence[SearchHit], cursor: SearchCursor, limit: int
    ) -> dict[str, Any]:
        candidates = sorted(hits, key=_order, reverse=True)
        if cursor.event_nid:
            last = (cursor.rank, cursor.ts, cursor.event_nid)
            candidates = [hit for hit in candidates if _order(hit) < last]
        found: list[SearchResult] = []
        examined = 0
        # with groups, look further: each group says whether it has more results
        grouped = bool(search.criteria.groupings.group_by)
        while (grouped or len(found) <= limit) and examined < min(len(candidates), MAX_EXAMINED):
            chunk = candidates[examined : examined + CHUNK]
            found += await self._examine(search, chunk)
            examined += len(chunk)
        shown, remaining = found[:limit], candidates[examined:]
        next_batch = self._next_cursor(hits, cursor, shown, found, candidates[:examined], remaining)
        groups: dict[str, Any] = {
            group.key: self._group(group.key, cursor, shown, found[limit:], remaining, next_batch)
            for group in search.criteria.groupings.group_by
        }
        response = await self._responses.build(
            search.caller, search.criteria, search.terms, shown, groups
        )
        oldest = await self._oldest_shown({hit.room_nid for hit in hits})
        visible = {
            hit.event_nid
            for hit in hits
            if hit.ts >= oldest.get(hit.room_nid, 0)
            and _is_always_visible(search.own.get(hit.room_nid), hit)
        }
        response["count"] = len(visible | {each.hit.event_nid for each in found})
        if next_batch is not None:
            response["next_batch"] = format_cursor(next_batch)
        return {"search_categories": {"room_events": response}}

    async def _oldest_shown(self, room_nids: Iterable[int]) -> Mapping[int, int]:
        """Return the time of the oldest message that may be shown, by room with retention."""
        if self._lifetimes is None:
            return {}
        return {nid: await self._lifetimes.get_oldest_shown(nid) for nid in room_nids}

    def _next_cursor(
        self,
        hits: Sequence[SearchHit],
        cursor: SearchCursor,
        shown: Sequence[SearchResult],
        found: Sequence[SearchResult],
        examined: Sequence[SearchHit],
        remaining: Sequence[SearchHit],
    ) -> SearchCursor | None:
        """Return the start of the next page if there may be one."""
        if len(found) > len(shown):
            return _after(shown[-1].hit, cursor)
        if remaining:
            return _after(examined[-1], cursor)
        if len(hits) == MAX_HITS:
            older = min(hit.event_nid for hit in hits) - 1
            return SearchCursor(older, group=cursor.group, value=cursor.value)
        return None

    def _group(
        self,
        key: GroupKey,
        cursor: SearchCursor,
        shown: Sequence[SearchResult],
        more: Sequence[SearchResult],
        remaining: Sequence[SearchHit],
        next_batch: SearchCursor | None,
    ) -> dict[str, Any]:
        """Return the results by group, in the order of each group's best result."""
        groups: dict[str, list[SearchResult]] = {}
        for each in shown:
            groups.setdefault(each.value_of(key), []).append(each)
        following = {each.value_of(key) for each in more}
        response: dict[str, Any] = {}
        for order, (value, members) in enumerate(groups.items(), 1):
            response[value] = {
                "results": [each.event.event.event_id for each in members],
                "order": order,
            }
            is_this = cursor.group == key and cursor.value == value
            if is_this and next_batch is not None:
                response[value]["next_batch"] = format_cursor(next_batch)
            elif cursor.group is None and (
                value in following or remaining or (next_batch is not None and not more)
            ):
                in_group = SearchCursor(cursor.window, group=key, value=value)
                response[value]["next_batch"] = format_cursor(_after(members[-1].hit, in_group))
        return response

    async def _examine(self, search: _Search, hits: Sequence[SearchHit]) -> list[SearchResult]:
        """Return the hits that the caller may see and that match the filter, in the same order."""
        user_id = search.caller.user_id
        events = await self._events.get_events(
            {nid for hit in hits for nid in (hit.event_nid, hit.text_nid)}
        )
        by_room: dict[int, list[SearchHit]] = {}
        for hit in hits:
            both = (events.get(hit.event_nid), events.get(hit.text_nid))
            if all(event is not None and event.redacted_by is None for event in both):
                by_room.setdefault(hit.room_nid, []).append(hit)
        seen: dict[int, tuple[VisibleEvent, ReadAccess]] = {}
        visible_edits: set[int] = set()
        for room_nid, in_room in by_room.items():
            access = await self._get_access(search, user_id, room_nid)
            if access is None:
                continue
            nids = [
                hit.event_nid
                for hit in in_room
                if _is_before(events[hit.event_nid], access.departure)
            ]
            for each in await self._reading.get_visible(
                search.caller, access.reader, nids, search.wanted
            ):
                if not each.is_erased:  # a hit would reveal the erased text
                    seen[each.event.nid] = (each, access.reader)
            edits = [hit.text_nid for hit in in_room if hit.text_nid != hit.event_nid]
            if edits:
                shown = await self._reading.get_visible(
                    search.caller, access.reader, edits, RoomEventFilter()
                )
                visible_edits.update(each.event.nid for each in shown if not each.is_erased)
        return [
            SearchResult(hit, *seen[hit.event_nid], events[hit.text_nid])
            for hit in hits
            if hit.event_nid in seen
            and (hit.text_nid == hit.event_nid or hit.text_nid in visible_edits)
        ]

    async def _get_access(
        self, search: _Search, user_id: UserID, room_nid: int
    ) -> _RoomAccess | None:
        """Return the user's access to a room that they are or were in."""
        if room_nid not in search.readers:
            search.readers[room_nid] = await self._find_access(search, user_id, room_nid)
        return search.readers[room_nid]

    async def _find_access(
        self, search: _Search, user_id: UserID, room_nid: int
    ) -> _RoomAccess | None:
        own = search.own.get(room_nid)
        if own is None or own.forgotten:
            return None
        departure = None
        if own.membership != "join":
            departure = await self._membership_periods.find_departure(own)
            if departure is None:
                return None
        room = (await self._rooms.get_rooms_by_nid([room_nid]))[room_nid]
        try:
            reader = await self._reading.find_access(user_id, RoomID(room.room_id))
            return _RoomAccess(reader, departure)
        except Forbidden:
            return None


def _is_always_visible(own: MembershipRow | None, hit: SearchHit) -> bool:
    """Return whether the user joined before the event and is still joined: then every history
    visibility shows it."""
    return (
        own is not None
        and own.membership == "join"
        and hit.position is not None
        and hit.position > own.position
    )


def _is_before(event: StoredEvent, departure: Departure | None) -> bool:
    return departure is None or TimelinePlace(event.depth, event.nid) <= departure.place


def _order(hit: SearchHit) -> tuple[int, int, int]:
    """Return the sort key; greater keys come first. Without ranking, all hits have the same
    rank."""
    return (hit.rank, hit.ts, hit.event_nid)


def _after(hit: SearchHit, cursor: SearchCursor) -> SearchCursor:
    return SearchCursor(cursor.window, hit.rank, hit.ts, hit.event_nid, cursor.group, cursor.value)
