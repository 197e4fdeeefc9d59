"""Serves events, states, auth chains and history of rooms to the servers in them.

Laws:
- Only a server that is in the room now, and that the room's ACL allows, gets anything. This server
  responds only while it is in the room itself, because otherwise it knows neither the members nor
  the ACL.
- In responses with single events or history, an event that no user of the requesting server may
  see is redacted (`server_visibility.py`). States and auth chains contain all their events in full.
- A rejected event is never sent. A soft-failed event is sent only if it is requested, or if an
  event that builds upon it is requested.
- For a room with partial state, this server serves neither states nor auth chains nor backfill,
  because other servers have more.
- Unredacted events are sent as the stored bytes. The number of queries does not grow with the size
  of the room.

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
from federation.rooms.server_acl_checks import ServerACLChecks
from federation.rooms.serving.server_visibility import ServerVisibility
from federation.rooms.serving.streamed_events import Part, make_part, splice
from federation.rooms.snapshot import RoomSnapshot
from storage.events.auth_chains import AuthChainStore
from storage.events.events import EventStore
from storage.events.timelines import Direction, TimelinePlace, TimelineStore
from storage.rooms.served_states import ServedStateReader

MAX_PAGE: Final = 100
"""Events in one response."""
MAX_NAMED: Final = 100
"""Events that a request may name."""
PAGE_SIZES: Final = (20, 200, 200, 200, 200)
"""Numbers of events near a time that are checked, page by page, until the server may see one. Many
events may be older than the room's retention period."""

Pdus = list[msgspec.Raw]


class ServedStateIDs(msgspec.Struct, frozen=True):
    """A state and its auth chain, as event IDs."""

    state: list[str]
    auth_chain: list[str]


class TransactionForm:
    """Wraps PDUs in a transaction, which is the form of some responses."""

    def __init__(self, *, identity: ServerIdentity, now_ms: Callable[[], int]) -> None:
        self._identity = identity
        self._now_ms = now_ms

    def wrap(self, pdus: Pdus) -> dict[str, Any]:
        """Return a transaction with these PDUs."""
        return {
            "origin": self._identity.server_name,
            "origin_server_ts": self._now_ms(),
            "pdus": pdus,
        }


class ServedRooms:
    """Serves rooms to other servers. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        events: RoomEvents,
        store: EventStore,
        states: ServedStateReader,
        chains: AuthChainStore,
        timelines: TimelineStore,
        access: ServerACLChecks,
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
        """Return one event. Raises NotFound, Forbidden."""
        stored = (await self._events.get_in_any_room([event_id])).get(event_id)
        if stored is None:
            raise NotFound("This server does not have the event")
        snapshot = await self._access.get_room(server, stored.event.room_id)
        if stored.rejected or (stored.is_outlier and stored.event.state_key is None):
            raise NotFound("This server does not have the event")
        return await self._encode_visible(server, snapshot, [stored])

    async def get_state(self, server: ServerName, room_id: RoomID, event_id: EventID) -> Response:
        """Return the state before an event and its auth chain as JSON. Raises NotFound,
        Forbidden."""
        stored = await self._get_non_outlier(server, room_id, event_id)
        state = await self._states.get_state(
            stored.room_nid, stored.state_root, lambda after: entries_before(stored, after).values()
        )
        parts: list[Part] = [
            b'{"pdus":[',
            make_part(state, state.state),
            b'],"auth_chain":[',
            make_part(state, state.chain),
            b"]}",
        ]
        return splice(self._store, parts, "state")

    async def get_state_ids(
        self, server: ServerName, room_id: RoomID, event_id: EventID
    ) -> ServedStateIDs:
        """Return the same as `get_state`, as event IDs."""
        stored = await self._get_non_outlier(server, room_id, event_id)
        state, chain = await self._states.get_ids(
            stored.room_nid, stored.state_root, lambda after: entries_before(stored, after).values()
        )
        return ServedStateIDs(state, chain)

    async def get_auth_chain(self, server: ServerName, room_id: RoomID, event_id: EventID) -> Pdus:
        """Return the auth chain of an event. Raises NotFound, Forbidden."""
        snapshot = await self._get_complete_room(server, room_id)
        stored = await self._find(snapshot, event_id)
        auth_events = await self._events.get_by_id(snapshot.room.room_nid, stored.event.auth_events)
        nids = {other.nid for other in auth_events.values() if not other.rejected}
        return await self._load_raw(nids | await self._chains.get_auth_chain(nids))

    async def _load_raw(self, event_nids: Iterable[int]) -> Pdus:
        return _raw((await self._store.get_pdus(event_nids)).values())

    async def get_before(
        self, server: ServerName, room_id: RoomID, from_: Sequence[EventID], limit: int
    ) -> Pdus:
        """Return events of the room and their ancestors, the latest first.

        Raises NotFound, Forbidden, InvalidParam.
        """
        snapshot = await self._get_complete_room(server, room_id)
        start = await self._find_starts(snapshot, from_)
        events = await self._walk(snapshot, start, (), min(max(limit, 1), MAX_PAGE))
        return await self._encode_visible(server, snapshot, events)

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
        """Return the ancestors of `latest` back to `earliest`, the oldest first.

        Raises NotFound, Forbidden, InvalidParam.
        """
        snapshot = await self._access.get_room(server, room_id)
        start = await self._find_starts(snapshot, latest)
        names = {name for stored in start for name in stored.event.prev_events}
        skipped = {*earliest, *latest}
        before = await self._events.get_by_id(snapshot.room.room_nid, names - skipped)
        first = [stored for stored in before.values() if stored.event.depth >= min_depth]
        events = await self._walk(snapshot, first, skipped, min(max(limit, 1), MAX_PAGE), min_depth)
        return await self._encode_visible(server, snapshot, events[::-1])

    async def find_closest(
        self, server: ServerName, room_id: RoomID, ts: int, direction: Direction
    ) -> tuple[EventID, int]:
        """Return the event closest to a time in milliseconds, and its own time.

        Raises NotFound, Forbidden.
        """
        snapshot = await self._access.get_room(server, room_id)
        last: tuple[int, int] | None = None
        for limit in PAGE_SIZES:
            page = await self._timelines.get_by_time(
                snapshot.room.room_nid, ts, direction, last, limit
            )
            loaded = await self._events.get_events(nid for _, nid in page)
            events = [loaded[nid] for _, nid in page]
            seen = await self._visibility.find_visible(server, snapshot.room.room_nid, events)
            for stored, visible in zip(events, seen, strict=True):
                if visible:
                    return stored.event.event_id, stored.event.origin_server_ts
            if len(page) < limit:
                break
            last = page[-1]
        raise NotFound("There is no event on that side of the time")

    async def _get_complete_room(self, server: ServerName, room_id: RoomID) -> RoomSnapshot:
        snapshot = await self._access.get_room(server, room_id)
        if snapshot.head.partial_join is not None:
            raise NotFound("This server does not know all of the room's state yet")
        return snapshot

    async def _find(self, snapshot: RoomSnapshot, event_id: EventID) -> StoredEvent:
        stored = await self._events.get_event(snapshot.room.room_nid, event_id)
        if stored is None or stored.rejected:
            raise NotFound("This server does not have the event")
        return stored

    async def _get_non_outlier(
        self, server: ServerName, room_id: RoomID, event_id: EventID
    ) -> StoredEvent:
        """Return an event that has a place in the room."""
        stored = await self._find(await self._get_complete_room(server, room_id), event_id)
        if stored.is_outlier:
            raise NotFound("This server does not have the state at the event")
        return stored

    async def _find_starts(
        self, snapshot: RoomSnapshot, names: Sequence[EventID]
    ) -> list[StoredEvent]:
        """Return the named events that are stored."""
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
        """Return events and their ancestors, the deepest first, without outliers and rejected
        ones."""
        room_nid = snapshot.room.room_nid
        heap = [(-stored.depth, -stored.nid, stored) for stored in start if not stored.is_outlier]
        heap.sort(key=lambda entry: entry[:2])
        seen = {*skipped, *(stored.event.event_id for _, _, stored in heap)}
        if heap:
            # one query loads nearly all that the walk will meet
            page = await self._timelines.get_page(
                room_nid,
                TimelinePlace(heap[0][2].depth + 1, 0),
                None,
                Direction.BACKWARDS,
                2 * limit,
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

    async def _encode_visible(
        self, server: ServerName, snapshot: RoomSnapshot, events: Sequence[StoredEvent]
    ) -> Pdus:
        seen = await self._visibility.find_visible(server, snapshot.room.room_nid, events)
        return _raw(
            stored.pdu
            if visible
            else encode_event_json(snapshot.version, redact(snapshot.version, stored.event.pdu))
            for stored, visible in zip(events, seen, strict=True)
        )


def _raw(pdus: Iterable[bytes]) -> Pdus:
    return [msgspec.Raw(pdu) for pdu in pdus]
