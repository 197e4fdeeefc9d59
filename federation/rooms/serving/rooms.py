"""What other servers may read of the rooms that they are in: events, states, auth chains, the past.

Laws:
- Only a server that is in the room now, and that the room's ACL does not deny, is told anything;
  and only by a server that is in the room itself, since another knows neither who is in it nor the
  ACL.
- An event that nobody of the server may see, by the history visibility, is given without its
  content. What was rejected is not given at all. What was soft-failed is given to who asks for it,
  or for something that stands upon it.
- Of a room of which only a part of the state is here, no state and nothing of the past is told:
  others know more.
- Bytes are given as they are stored. The number of queries does not grow with the size of the room.

spec: server-server-api#retrieving-events,
server-server-api#backfilling-and-retrieving-missing-events, server-server-api#soft-failure
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import heappop, heappush
from typing import Any, Final

import msgspec

from federation.api.responses import Response
from federation.peers.identity import ServerIdentity
from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.events import encode_event_json
from federation.protocol.ids import EventID, RoomID, ServerName
from federation.protocol.redaction import redact
from federation.rooms.events import RoomEvents, StoredEvent, entries_before
from federation.rooms.server_access import ServerAccess
from federation.rooms.serving.server_visibility import ServerVisibility
from federation.rooms.serving.spliced import Part, part_of, spliced
from federation.rooms.snapshot import RoomSnapshot
from storage.events.auth_chains import AuthChainStore
from storage.events.events import EventStore
from storage.events.timelines import Direction, Place, TimelineStore
from storage.rooms.served_states import ToldStates

MAX_PAGE: Final = 100
"""Events that one request gets."""
MAX_NAMED: Final = 100
"""Events that a request may name."""
LOOKED_AT: Final = (20, 200, 200, 200, 200)
"""Events next to a time that are looked at, page by page, until one is found that the server may
see. Many at once have become too old."""

Pdus = list[msgspec.Raw]


class ServedStateIDs(msgspec.Struct, frozen=True):
    """A state and its auth chain, as ids."""

    state: list[str]
    auth_chain: list[str]


class TransactionForm:
    """Gives PDUs the form of a transaction of this server's, which some answers have."""

    def __init__(self, identity: ServerIdentity, now_ms: Callable[[], int]) -> None:
        self._identity = identity
        self._now_ms = now_ms

    def wrap(self, pdus: Pdus) -> dict[str, Any]:
        """The transaction."""
        return {
            "origin": self._identity.server_name,
            "origin_server_ts": self._now_ms(),
            "pdus": pdus,
        }


class ServedRooms:
    """Answers other servers. For the reactor thread."""

    def __init__(
        self,
        events: RoomEvents,
        store: EventStore,
        states: ToldStates,
        chains: AuthChainStore,
        timelines: TimelineStore,
        access: ServerAccess,
        visibility: ServerVisibility,
    ) -> None:
        self._events = events
        self._store = store
        self._states = states
        self._chains = chains
        self._timelines = timelines
        self._access = access
        self._visibility = visibility

    async def get_event(self, server: ServerName, event_id: EventID) -> Pdus:
        """One event. Raises NotFound, Forbidden."""
        stored = (await self._events.get_anywhere([event_id])).get(event_id)
        if stored is None:
            raise NotFound("This server does not know the event")
        snapshot = await self._access.get_room(server, stored.event.room_id)
        if stored.rejected or (stored.is_outlier and stored.event.state_key is None):
            raise NotFound("This server does not know the event")
        return await self._show(server, snapshot, [stored])

    async def get_state(self, server: ServerName, room_id: RoomID, event_id: EventID) -> Response:
        """The state before an event, and its auth chain, as JSON. Raises NotFound, Forbidden."""
        stored = await self._find_placed(server, room_id, event_id)
        told = await self._states.get_state(
            stored.room_nid, stored.state_root, lambda after: entries_before(stored, after).values()
        )
        parts: list[Part] = [
            b'{"pdus":[',
            part_of(told, told.state),
            b'],"auth_chain":[',
            part_of(told, told.chain),
            b"]}",
        ]
        return spliced(self._store, parts, "state")

    async def get_state_ids(
        self, server: ServerName, room_id: RoomID, event_id: EventID
    ) -> ServedStateIDs:
        """As `get_state`, by the ids of the events."""
        stored = await self._find_placed(server, room_id, event_id)
        state, chain = await self._states.get_ids(
            stored.room_nid, stored.state_root, lambda after: entries_before(stored, after).values()
        )
        return ServedStateIDs(state, chain)

    async def get_auth_chain(self, server: ServerName, room_id: RoomID, event_id: EventID) -> Pdus:
        """The auth chain of an event. Raises NotFound, Forbidden."""
        snapshot = await self._get_whole(server, room_id)
        stored = await self._find(snapshot, event_id)
        cited = await self._events.get_by_id(snapshot.room.room_nid, stored.event.auth_events)
        nids = {other.nid for other in cited.values() if not other.rejected}
        return await self._load_raw(nids | await self._chains.get_auth_chain(nids))

    async def _load_raw(self, event_nids: Iterable[int]) -> Pdus:
        return _raw((await self._store.get_pdus(event_nids)).values())

    async def get_before(
        self, server: ServerName, room_id: RoomID, from_: Sequence[EventID], limit: int
    ) -> Pdus:
        """Events of the room and what precedes them, the latest first. Raises NotFound, Forbidden,
        InvalidParam."""
        snapshot = await self._get_whole(server, room_id)
        start = await self._starts(snapshot, from_)
        events = await self._walk(snapshot, start, (), min(max(limit, 1), MAX_PAGE))
        return await self._show(server, snapshot, events)

    async def get_between(
        self,
        server: ServerName,
        room_id: RoomID,
        *,
        earliest: Sequence[EventID],
        latest: Sequence[EventID],
        limit: int,
        min_depth: int,
    ) -> Pdus:
        """What precedes `latest`, without it, as far as `earliest`; the first comes first.

        Raises NotFound, Forbidden, InvalidParam.
        """
        snapshot = await self._access.get_room(server, room_id)
        start = await self._starts(snapshot, latest)
        names = {name for stored in start for name in stored.event.prev_events}
        skipped = {*earliest, *latest}
        before = await self._events.get_by_id(snapshot.room.room_nid, names - skipped)
        first = [stored for stored in before.values() if stored.event.depth >= min_depth]
        events = await self._walk(snapshot, first, skipped, min(max(limit, 1), MAX_PAGE), min_depth)
        return await self._show(server, snapshot, events[::-1])

    async def find_next_to(
        self, server: ServerName, room_id: RoomID, ts: int, direction: Direction
    ) -> tuple[EventID, int]:
        """The event next to a time in milliseconds, and its own time. Raises NotFound,
        Forbidden."""
        snapshot = await self._access.get_room(server, room_id)
        place: tuple[int, int] | None = None
        for limit in LOOKED_AT:
            page = await self._timelines.get_by_time(
                snapshot.room.room_nid, ts, direction, place, limit
            )
            loaded = await self._events.get_events(nid for _, nid in page)
            events = [loaded[nid] for _, nid in page]
            seen = await self._visibility.see(server, snapshot.room.room_nid, events)
            for stored, visible in zip(events, seen, strict=True):
                if visible:
                    return stored.event.event_id, stored.event.origin_server_ts
            if len(page) < limit:
                break
            place = page[-1]
        raise NotFound("There is no event on that side of the time")

    async def _get_whole(self, server: ServerName, room_id: RoomID) -> RoomSnapshot:
        snapshot = await self._access.get_room(server, room_id)
        if snapshot.head.partial_join is not None:
            raise NotFound("This server does not know all of the room's state yet")
        return snapshot

    async def _find(self, snapshot: RoomSnapshot, event_id: EventID) -> StoredEvent:
        stored = await self._events.get_event(snapshot.room.room_nid, event_id)
        if stored is None or stored.rejected:
            raise NotFound("This server does not know the event")
        return stored

    async def _find_placed(
        self, server: ServerName, room_id: RoomID, event_id: EventID
    ) -> StoredEvent:
        """An event the state before which is known."""
        stored = await self._find(await self._get_whole(server, room_id), event_id)
        if stored.is_outlier:
            raise NotFound("This server does not know the state at the event")
        return stored

    async def _starts(self, snapshot: RoomSnapshot, names: Sequence[EventID]) -> list[StoredEvent]:
        """Those of the named events that are known."""
        if len(names) > MAX_NAMED:
            raise InvalidParam(f"At most {MAX_NAMED} events may be named")
        found = await self._events.get_by_id(snapshot.room.room_nid, names)
        return [stored for stored in found.values() if not stored.rejected]

    async def _walk(
        self,
        snapshot: RoomSnapshot,
        start: Iterable[StoredEvent],
        skipped: Collection[EventID],
        limit: int,
        min_depth: int = 0,
    ) -> list[StoredEvent]:
        """Some events and what precedes them, the deepest first: those that have a place and were
        not rejected."""
        room_nid = snapshot.room.room_nid
        heap = [(-stored.depth, -stored.nid, stored) for stored in start if not stored.is_outlier]
        heap.sort(key=lambda entry: entry[:2])
        seen = {*skipped, *(stored.event.event_id for _, _, stored in heap)}
        if heap:
            # nearly all that the walk will meet, by one query
            page = await self._timelines.get_page(
                room_nid, Place(heap[0][2].depth + 1, 0), None, Direction.BACKWARDS, 2 * limit
            )
            await self._events.get_events(nid for _, nid in page)
        found: list[StoredEvent] = []
        for _ in range(4 * limit):
            if not heap or len(found) == limit:
                break
            stored = heappop(heap)[2]
            if not stored.rejected:
                found.append(stored)
            names = [name for name in stored.event.prev_events if name not in seen]
            seen.update(names)
            for before in (await self._events.get_by_id(room_nid, names)).values():
                if not before.is_outlier and before.event.depth >= min_depth:
                    heappush(heap, (-before.depth, -before.nid, before))
        return found

    async def _show(
        self, server: ServerName, snapshot: RoomSnapshot, events: Sequence[StoredEvent]
    ) -> Pdus:
        seen = await self._visibility.see(server, snapshot.room.room_nid, events)
        return _raw(
            stored.pdu
            if visible
            else encode_event_json(snapshot.version, redact(snapshot.version, stored.event.pdu))
            for stored, visible in zip(events, seen, strict=True)
        )


def _raw(pdus: Iterable[bytes]) -> Pdus:
    return [msgspec.Raw(pdu) for pdu in pdus]
