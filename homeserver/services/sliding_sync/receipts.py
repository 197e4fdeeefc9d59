"""Receipts beside the rooms of an answer. Proposal: MSC3960.

Of a room that is new to the client, or of which it gets more of the past, it is told who has read
what it is shown, and what its own user has read; then what is new, also of the time while the room
was out of view. An event of this form has room for one receipt of a user at an event of the room:
what is left comes in the next answer, which comes at once.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from operator import attrgetter
from typing import Any, Final

from federation.protocol.ids import UserID
from federation.rooms.timelines import Timelines
from federation.rooms.visibility import Seen
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.rooms.receipt_cache import KeptReceipts
from homeserver.services.sliding_sync.connections import LIVE, Connection, StateChanges, not_live
from homeserver.services.sliding_sync.request import SlidingRequest
from homeserver.services.sliding_sync.room_work import RoomWork
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.sync.sync import receipt_events, visible_receipts
from storage.rooms.receipts import UNTHREADED, ReceiptRow, ReceiptStore
from storage.rooms.rooms import RoomStore

NO_STRETCH: Final = (0, 0)

_position: Final = attrgetter("event.position")


class ReceiptNews:
    """Reads what of receipts is new to a connection."""

    def __init__(
        self,
        receipts: ReceiptStore,
        kept: KeptReceipts,
        timelines: Timelines,
        recent: RecentChanges,
        rooms: RoomStore,
        ignored: IgnoredUsers,
    ) -> None:
        self._receipts = receipts
        self._kept = kept
        self._timelines = timelines
        self._recent = recent
        self._rooms = rooms
        self._ignored = ignored

    async def read(
        self,
        request: SlidingRequest,
        connection: Connection,
        scope: set[int],
        works: Sequence[RoomWork],
        upto: int,
        changes: StateChanges,
    ) -> tuple[dict[str, Any], bool]:
        """The receipts by room id, and whether there was room for all of them: the others come in
        the next answer."""
        user_id, known = request.caller.user_id, connection.state.receipts
        timelines = {
            work.room.room_nid: work.shown
            for work in works
            if work.initial or work.expanded or work.sent is None
        }
        new = scope - known.keys()
        whole = new | (timelines.keys() & scope)
        missed = {nid for nid, _ in not_live(known) if nid in scope}
        recent = (
            self._recent.rooms_since(user_id, connection.position)
            if connection.token is not None
            else None
        )
        ranges: dict[int, tuple[int, int]] = {}
        firsts = await self._find_first_shown(connection, new - timelines.keys(), upto)
        for nid in whole:
            # a receipt comes after what it is for
            starts = list(map(_position, timelines.get(nid, ())))
            if nid in known:
                starts.append(connection.since(known[nid]))
            elif nid in firsts:
                starts.append(firsts[nid])
            if None in starts:
                ranges[nid] = (0, upto)
            elif starts:
                ranges[nid] = (min(starts), upto)
        for nid in (missed | (scope if recent is None else recent.receipts & scope)) - whole:
            ranges[nid] = (connection.since(known[nid]), upto)
        found: dict[int, list[ReceiptRow]] = {}
        changed, own = await self._read(ranges, user_id, whole)
        for nid, rows in changed.items():
            if rows:
                told, first = (
                    connection.since(known[nid]) if nid in known else upto,
                    firsts.get(nid, upto),
                )
                found[nid] = _of_shown(rows, timelines.get(nid, ()), told, first)
        for nid, rows in own.items():
            found[nid] = [*(row for row in found.get(nid, []) if row.user_id != user_id), *rows]
        self.end(request, connection, scope, changes)
        ignored = await self._ignored.of_user(user_id)
        events: dict[int, dict[str, Any]] = {}
        ends = dict.fromkeys(new | missed, LIVE)
        is_all = True
        for nid, rows in found.items():
            if not (shown := visible_receipts(rows, user_id, ignored)):
                continue
            fit, held_from = _as_fit(shown)
            events[nid] = receipt_events(fit)[0]
            if held_from is not None:
                ends[nid], is_all = held_from - 1, False
        for nid, end in ends.items():
            changes.set_receipts(nid, end)
        rooms = await self._rooms.get_rooms_by_nid(events)
        return {rooms[nid].room_id: event for nid, event in events.items()}, is_all

    async def _read(
        self, ranges: Mapping[int, tuple[int, int]], user_id: UserID, whole: Set[int]
    ) -> tuple[Mapping[int, list[ReceiptRow]], Mapping[int, list[ReceiptRow]]]:
        """The receipts that changed in these stretches (after, up to), and the user's own in whole
        rooms."""
        changed: dict[int, list[ReceiptRow]] = {}
        own: dict[int, list[ReceiptRow]] = {}
        kept = await self._kept.of_rooms(whole) if whole else {}
        for nid, rows in kept.items():
            if rows:
                after, upto = ranges.get(nid, NO_STRETCH)
                changed[nid] = [row for row in rows if after < row.position <= upto]
                own[nid] = [row for row in rows if row.user_id == user_id]
        many = {nid for nid in whole if kept[nid] is None}
        others = {nid: stretch for nid, stretch in ranges.items() if nid in many or nid not in kept}
        if many:
            changed_of_many, own_of_many = await self._receipts.get_receipts_and_own(
                others, user_id, many
            )
            changed.update(changed_of_many)
            own.update(own_of_many)
        elif others:
            changed.update(await self._receipts.get_receipts(others))
        return changed, own

    async def read_of_new(
        self,
        request: SlidingRequest,
        connection: Connection,
        works: Sequence[RoomWork],
        upto: int,
        changes: StateChanges,
    ) -> dict[str, Any] | None:
        """The same for rooms with which the client begins, and a client since whose `pos` nobody
        has read anything, as far as it knows. None where they are many, or there is no room for all
        of them."""
        user_id, known = request.caller.user_id, connection.state.receipts
        ignored = await self._ignored.of_user(user_id)
        events: dict[str, Any] = {}
        of_rooms = await self._kept.of_rooms([work.room.room_nid for work in works])
        for work in works:
            nid = work.room.room_nid
            kept = of_rooms[nid]
            if kept is None:
                return None
            changes.set_receipts(nid, LIVE)
            if not kept:
                continue
            told = connection.since(known[nid]) if nid in known else upto
            first = min([told, *(seen.event.position or 0 for seen in work.shown)])
            rows = _of_shown(
                (row for row in kept if first < row.position <= upto), work.shown, told, upto
            )
            rows = [
                *(row for row in rows if row.user_id != user_id),
                *(row for row in kept if row.user_id == user_id),
            ]
            fit, held_from = _as_fit(visible_receipts(rows, user_id, ignored))
            if held_from is not None:
                return None
            if fit:
                events[work.room.room_id] = receipt_events(fit)[0]
        return events

    async def _find_first_shown(
        self, connection: Connection, room_nids: Set[int], upto: int
    ) -> dict[int, int]:
        """Of rooms that the client has without their receipts, which it wants now: the position of
        the oldest of the newest events, as many as it asked for."""
        by_limit: dict[int, dict[int, tuple[int, int]]] = {}
        for nid in room_nids & connection.state.rooms.keys():
            by_limit.setdefault(connection.state.rooms[nid].timeline_limit, {})[nid] = (0, upto)
        return {
            nid: stretch.arrivals[0].position
            for limit, ranges in by_limit.items()
            for nid, stretch in (await self._timelines.get_latest(ranges, limit)).items()
            if stretch.arrivals
        }

    def end(
        self,
        request: SlidingRequest,
        connection: Connection,
        scope: set[int],
        changes: StateChanges,
    ) -> None:
        """Receipts outside the scope that are new are missed."""
        known = connection.state.receipts
        if connection.token is None or not known:
            return
        recent = self._recent.rooms_since(request.caller.user_id, connection.position)
        for nid in known if recent is None else recent.receipts & known.keys():
            if known[nid] == LIVE and nid not in scope:
                changes.set_receipts(nid, connection.position)


def _of_shown(
    rows: Iterable[ReceiptRow], timeline: Iterable[Seen], told: int, first: int
) -> list[ReceiptRow]:
    """Those of the receipts at events of the timeline, and those that are newer than what was told,
    or at events that are not before the first."""
    ids = {seen.event.event.event_id for seen in timeline}
    return [
        row
        for row in rows
        if row.event_id in ids or row.position > told or (row.event_position or 0) >= first
    ]


def _as_fit(receipts: Sequence[ReceiptRow]) -> tuple[list[ReceiptRow], int | None]:
    """As many of a room's receipts as one event has room for, and the position of the first that
    has to wait, if one does.

    It has room for one of a user's at the same event: that for all threads, which says what the
    others say; else the oldest.
    """
    fit: dict[tuple[str, str, str], ReceiptRow] = {}
    waiting: list[int] = []
    for row in sorted(receipts, key=lambda row: (row.thread_id != UNTHREADED, row.position)):
        first = fit.setdefault((row.event_id, row.receipt_type, row.user_id), row)
        if first is not row and first.thread_id != UNTHREADED:
            waiting.append(row.position)
    return list(fit.values()), min(waiting, default=None)
