"""The receipts extension. Proposal: MSC3960.

If a room is new to the client, or the client gets older events of it, the response has the receipts
on the events in the timeline, and the user's own receipts. Later responses have new receipts,
including those from the time when the room was out of view.

An m.receipt event can have only one receipt of each type by a user on the same room event. If the
user has receipts there for several threads, the oldest is sent first. The others follow one by one
in the next responses, which are sent immediately. An unthreaded receipt includes the others, so
only that one is sent.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from operator import attrgetter
from typing import Any, Final

from federation.protocol.ids import UserID
from federation.rooms.timelines import Timelines
from federation.rooms.visibility import VisibleEvent
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.rooms.receipt_cache import ReceiptCache
from homeserver.services.sliding_sync.connections import (
    LIVE,
    SlidingConnection,
    StateChanges,
    not_live,
)
from homeserver.services.sliding_sync.request import SlidingRequest
from homeserver.services.sliding_sync.room_update import SlidingRoomUpdate
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.sync.ephemeral import receipt_events, visible_receipts
from storage.rooms.receipts import UNTHREADED, ReceiptRow, ReceiptStore
from storage.rooms.rooms import RoomStore

NO_RANGE: Final = (0, 0)

_position: Final = attrgetter("event.position")


class ReceiptReader:
    """Reads the receipts that are new to a connection."""

    def __init__(
        self,
        *,
        receipts: ReceiptStore,
        cache: ReceiptCache,
        timelines: Timelines,
        recent: RecentChanges,
        rooms: RoomStore,
        ignored: IgnoredUsers,
    ) -> None:
        self._receipts = receipts
        self._cache = cache
        self._timelines = timelines
        self._recent = recent
        self._rooms = rooms
        self._ignored = ignored

    async def read(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        scope: set[int],
        updates: Sequence[SlidingRoomUpdate],
        upto: int,
        changes: StateChanges,
    ) -> dict[str, Any]:
        """Return the receipts by room ID, as many as fit; the others come in the next responses."""
        user_id, known = request.caller.user_id, connection.state.receipts
        timelines = {
            update.room.room_nid: update.shown
            for update in updates
            if update.initial or update.expanded or update.sent is None
        }
        new = scope - known.keys()
        missed = {nid for nid, _ in not_live(known) if nid in scope}
        full_rooms = new | (timelines.keys() & scope)
        first_positions = await self._find_first_events(connection, new - timelines.keys(), upto)
        ranges = _ranges_of_full_rooms(connection, full_rooms, timelines, first_positions, upto)
        for nid in self._find_changed(request, connection, scope, missed) - full_rooms:
            ranges[nid] = (connection.since(known[nid]), upto)
        found: dict[int, list[ReceiptRow]] = {}
        changed, own = await self._read(ranges, user_id, full_rooms)
        for nid, rows in changed.items():
            sent = connection.since(known[nid]) if nid in known else upto
            found[nid] = _on_shown(
                rows, timelines.get(nid, ()), sent, first_positions.get(nid, upto)
            )
        for nid, rows in own.items():
            found[nid] = [*(row for row in found.get(nid, []) if row.user_id != user_id), *rows]
        self.end(request, connection, scope, changes)
        events, postponed = await self._make_events(request, found)
        for nid in (*new, *missed, *postponed):
            changes.set_receipts(nid, postponed.get(nid, LIVE))
        rooms = await self._rooms.get_rooms_by_nid(events)
        return {rooms[nid].room_id: event for nid, event in events.items()}

    def _find_changed(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        scope: set[int],
        missed: set[int],
    ) -> set[int]:
        """Return the rooms that may have new receipts."""
        recent = None
        if connection.token is not None:
            recent = self._recent.rooms_since(request.caller.user_id, connection.position)
        return missed | (scope if recent is None else recent.receipts & scope)

    async def _make_events(
        self, request: SlidingRequest, found: Mapping[int, Sequence[ReceiptRow]]
    ) -> tuple[dict[int, dict[str, Any]], dict[int, int]]:
        """Return the m.receipt event of each room; for rooms with receipts that do not fit, also
        the position before them."""
        user_id = request.caller.user_id
        ignored = await self._ignored.of_user(user_id)
        events: dict[int, dict[str, Any]] = {}
        postponed: dict[int, int] = {}
        for nid, rows in found.items():
            if visible := visible_receipts(rows, user_id, ignored):
                fit, first_postponed = _fit(visible)
                events[nid] = receipt_events(fit)[0]
                if first_postponed is not None:
                    postponed[nid] = first_postponed - 1
        return events, postponed

    async def _read(
        self, ranges: Mapping[int, tuple[int, int]], user_id: UserID, full_rooms: Set[int]
    ) -> tuple[dict[int, list[ReceiptRow]], dict[int, list[ReceiptRow]]]:
        """Read the receipts that changed in the ranges (after, up to), and the user's own in
        `full_rooms` rooms."""
        changed: dict[int, list[ReceiptRow]] = {}
        own: dict[int, list[ReceiptRow]] = {}
        cached = await self._cache.get_room_receipts(full_rooms) if full_rooms else {}
        for nid, rows in cached.items():
            if rows:
                after, upto = ranges.get(nid, NO_RANGE)
                changed[nid] = [row for row in rows if after < row.position <= upto]
                own[nid] = [row for row in rows if row.user_id == user_id]
        uncached = {nid for nid in full_rooms if cached[nid] is None}
        others = {
            nid: range_ for nid, range_ in ranges.items() if nid in uncached or nid not in cached
        }
        if uncached:
            read_changed, read_own = await self._receipts.get_receipts_and_own(
                others, user_id, uncached
            )
            changed.update(read_changed)
            own.update(read_own)
        elif others:
            changed.update(await self._receipts.get_receipts(others))
        return changed, own

    async def _find_first_events(
        self, connection: SlidingConnection, room_nids: Set[int], upto: int
    ) -> dict[int, int]:
        """Return the position of the oldest event that the client has, for rooms that it has
        without their receipts."""
        by_limit: dict[int, dict[int, tuple[int, int]]] = {}
        for nid in room_nids & connection.state.rooms.keys():
            by_limit.setdefault(connection.state.rooms[nid].timeline_limit, {})[nid] = (0, upto)
        return {
            nid: range_.arrivals[0].position
            for limit, ranges in by_limit.items()
            for nid, range_ in (await self._timelines.get_latest(ranges, limit)).items()
            if range_.arrivals
        }

    def end(
        self,
        request: SlidingRequest,
        connection: SlidingConnection,
        scope: set[int],
        changes: StateChanges,
    ) -> None:
        """Record the rooms outside the scope in which the client misses new receipts."""
        known = connection.state.receipts
        if connection.token is None or not known:
            return
        recent = self._recent.rooms_since(request.caller.user_id, connection.position)
        for nid in known if recent is None else recent.receipts & known.keys():
            if known[nid] == LIVE and nid not in scope:
                changes.set_receipts(nid, connection.position)


def _ranges_of_full_rooms(
    connection: SlidingConnection,
    full_rooms: Set[int],
    timelines: Mapping[int, Sequence[VisibleEvent]],
    first_positions: Mapping[int, int],
    upto: int,
) -> dict[int, tuple[int, int]]:
    """Return the ranges of receipts for rooms whose shown events the client did not have before."""
    known = connection.state.receipts
    ranges: dict[int, tuple[int, int]] = {}
    for nid in full_rooms:
        starts = list(map(_position, timelines.get(nid, ())))  # a receipt comes after its event
        if nid in known:
            starts.append(connection.since(known[nid]))
        elif nid in first_positions:
            starts.append(first_positions[nid])
        if None in starts:
            ranges[nid] = (0, upto)
        elif starts:
            ranges[nid] = (min(starts), upto)
    return ranges


def _on_shown(
    rows: Iterable[ReceiptRow], timeline: Iterable[VisibleEvent], sent: int, first: int
) -> list[ReceiptRow]:
    """Select the receipts on events of the timeline or from `first` on, and those that came after
    `sent`."""
    ids = {seen.event.event.event_id for seen in timeline}
    return [
        row
        for row in rows
        if row.event_id in ids or row.position > sent or (row.event_position or 0) >= first
    ]


def _fit(receipts: Sequence[ReceiptRow]) -> tuple[list[ReceiptRow], int | None]:
    """Select the receipts that fit into one m.receipt event; also return the position of the first
    one left out.

    One receipt of each type of a user on an event fits: the unthreaded one, which includes the
    others; otherwise the oldest.
    """
    fit: dict[tuple[str, str, str], ReceiptRow] = {}
    waiting: list[int] = []
    for row in sorted(receipts, key=lambda row: (row.thread_id != UNTHREADED, row.position)):
        first = fit.setdefault((row.event_id, row.receipt_type, row.user_id), row)
        if first is not row and first.thread_id != UNTHREADED:
            waiting.append(row.position)
    return list(fit.values()), min(waiting, default=None)
