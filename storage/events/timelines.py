"""The events of a room in order: by arrival (for sync) and by depth (for pagination).

The order of arrival is the order of stream positions. A backfilled event has no position, so it
never appears as new. The order by depth is by (depth, event_nid), and contains all events of the
timeline. Pages do not contain purged messages, but the position of a purged message stays stored,
because lookups of earlier states and pagination tokens depend on it.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.events import IS_FORGOTTEN, IS_SHOWN, IS_UNPURGED_MESSAGE

INLINE_ARRIVALS = 200
"""At most this many arrivals are read on the calling thread, if the database allows that: they are
adjacent in one index."""


class Direction(Enum):
    """The direction in which a timeline is read."""

    BACKWARDS = "b"
    FORWARDS = "f"


class TimelinePlace(msgspec.Struct, frozen=True, order=True):
    """A place between two events in the order by depth: right after the event with this depth and
    number."""

    depth: int
    event_nid: int


LATEST_ARRIVALS = 1000
START = TimelinePlace(-1, 0)
"""Before all events."""


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """An event and the position at which it arrived."""

    position: int
    event_nid: int


class Gaps(msgspec.Struct, frozen=True):
    """The missing events of a part of a room, the deepest first."""

    ends: Sequence[str]
    """Ids of missing events that stored events name as `prev_events`."""
    purged_message: str | None
    """The ID of the deepest message whose content was purged because no local user remembered the
    room."""


GAPS_SQL: Final = (
    "SELECT 0, event_id, depth FROM backward_extremities"
    " WHERE room_nid = ? AND depth >= ? AND depth <= ?"
    " UNION ALL SELECT * FROM (SELECT 1, event_id, depth FROM events"
    " WHERE room_nid = ? AND depth >= ? AND depth <= ?"
    f" AND {IS_FORGOTTEN} ORDER BY depth DESC, event_nid DESC LIMIT 1) AS forgotten"
    " ORDER BY depth DESC"
)


class TimelineStore:
    """Reads events in either order."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_latest(
        self, ranges: Mapping[int, tuple[int, int]], limit: int
    ) -> Mapping[int, list[Arrival]]:
        """Return for each room (after, up to) its newest arrivals with after < position ≤ up to,
        newest first, at most `limit`."""
        few = len(ranges) * limit <= INLINE_ARRIVALS
        read = self._database.read_quickly if few else self._database.read_without_snapshot
        return await read("get_latest_arrivals", _select_latest, dict(ranges), limit)

    async def get_next(
        self, ranges: Mapping[int, tuple[int, int]], limit: int
    ) -> Mapping[int, list[Arrival]]:
        """Return for each room (after, up to) its first arrivals with after < position ≤ up to,
        oldest first, at most `limit`."""
        return await self._database.read("get_next_arrivals", _select_next, dict(ranges), limit)

    async def get_places(self, event_nids: Iterable[int]) -> Mapping[int, TimelinePlace]:
        """Return the places right after these events."""
        return await self._database.read_quickly(
            "get_timeline_places", _select_places, list(event_nids)
        )

    async def get_place_at(self, room_nid: int, position: int) -> TimelinePlace:
        """Return the place right after the newest event that had arrived at that position; START if
        there was none."""
        return await self._database.read_quickly(
            "get_timeline_place_at", _select_place_at, room_nid, position
        )

    async def get_deepest_at(self, room_nid: int, position: int) -> TimelinePlace:
        """Return the place right after the deepest of the last thousand arrivals at a position;
        START if there was none.

        While a room's history is forked, new arrivals may be far behind the others in depth.
        """
        return await self._database.read_quickly(
            "get_deepest_place_at", _select_deepest_at, room_nid, position
        )

    async def get_page(
        self,
        room_nid: int,
        start: TimelinePlace,
        end: TimelinePlace | None,
        direction: Direction,
        limit: int,
    ) -> list[tuple[TimelinePlace, int]]:
        """Return events from `start` on in that direction, no further than `end`: (place right
        after the event, event_nid)."""
        return await self._database.read(
            "get_timeline_page", _select_page, room_nid, start, end, direction, limit
        )

    async def get_by_time(
        self,
        room_nid: int,
        ts: int,
        direction: Direction,
        place: tuple[int, int] | None,
        limit: int,
    ) -> list[tuple[int, int]]:
        """Return events sent at or after that time (or before it), the nearest first:
        (origin_server_ts, event_nid).

        `place` is the last one of the previous page.
        """
        return await self._database.read(
            "get_events_by_time", _select_by_time, room_nid, ts, direction, place, limit
        )

    async def get_around(
        self, places: Iterable[tuple[int, TimelinePlace]], before: int, after: int
    ) -> list[tuple[list[tuple[TimelinePlace, int]], list[tuple[TimelinePlace, int]]]]:
        """Return for each (room, place right after an event) the events before and after it, as
        pages. One read."""
        return await self._database.read(
            "get_timeline_around", _select_around, list(places), before, after
        )

    async def get_first_after(self, room_nid: int, position: int) -> int | None:
        """Return the number of the first event that arrived after the position."""
        return await self._database.read_quickly(
            "get_first_event_after", _select_first_after, room_nid, position
        )

    async def get_backward_extremities(self, room_nid: int) -> Mapping[str, int]:
        """Return the IDs of missing events that stored events name as `prev_events`, with their
        depth."""
        return await self._database.read_quickly(
            "get_backward_extremities", _select_backward, room_nid
        )

    async def get_gaps(self, room_nid: int, lowest: int, highest: int) -> Gaps:
        """Return the events between two depths that other servers may have. One query."""
        return await self._database.read_quickly(
            "get_timeline_gaps", _select_gaps, room_nid, lowest, highest
        )


def _select_latest(
    txn: Transaction, ranges: dict[int, tuple[int, int]], limit: int
) -> dict[int, list[Arrival]]:
    sql = (
        "SELECT position, event_nid FROM events"
        " WHERE room_nid = ? AND position > ? AND position <= ?"
        " ORDER BY position DESC LIMIT ?"
    )
    return _select_ranges(txn, sql, ranges, limit)


def _select_next(
    txn: Transaction, ranges: dict[int, tuple[int, int]], limit: int
) -> dict[int, list[Arrival]]:
    sql = (
        "SELECT position, event_nid FROM events"
        " WHERE room_nid = ? AND position > ? AND position <= ?"
        " ORDER BY position LIMIT ?"
    )
    return _select_ranges(txn, sql, ranges, limit)


def _select_ranges(
    txn: Transaction, sql: str, ranges: dict[int, tuple[int, int]], limit: int
) -> dict[int, list[Arrival]]:
    rows = txn.query_each(
        sql, [(room_nid, after, upto, limit) for room_nid, (after, upto) in ranges.items()]
    )
    return {nid: [Arrival(*row) for row in found] for nid, found in zip(ranges, rows, strict=True)}


def _select_places(txn: Transaction, event_nids: list[int]) -> dict[int, TimelinePlace]:
    rows = txn.query_in("SELECT event_nid, depth FROM events WHERE event_nid IN {keys}", event_nids)
    return {nid: TimelinePlace(depth, nid) for nid, depth in rows}


def _select_place_at(txn: Transaction, room_nid: int, position: int) -> TimelinePlace:
    row = txn.query_one(
        "SELECT depth, event_nid FROM events WHERE room_nid = ? AND position <= ?"
        " ORDER BY position DESC LIMIT 1",
        (room_nid, position),
    )
    return TimelinePlace(*row) if row is not None else START


def _select_deepest_at(txn: Transaction, room_nid: int, position: int) -> TimelinePlace:
    row = txn.query_one(
        "SELECT depth, event_nid FROM (SELECT depth, event_nid FROM events"
        " WHERE room_nid = ? AND position <= ?"
        " ORDER BY position DESC LIMIT ?) AS latest ORDER BY depth DESC, event_nid DESC LIMIT 1",
        (room_nid, position, LATEST_ARRIVALS),
    )
    return TimelinePlace(*row) if row is not None else START


def _select_page(
    txn: Transaction,
    room_nid: int,
    start: TimelinePlace,
    end: TimelinePlace | None,
    direction: Direction,
    limit: int,
) -> list[tuple[TimelinePlace, int]]:
    args: list[int] = [room_nid, start.depth, start.event_nid]
    if direction is Direction.BACKWARDS:
        bounds, order = "(depth, event_nid) <= (?, ?)", "DESC"
        if end is not None:
            bounds += " AND (depth, event_nid) > (?, ?)"
    else:
        bounds, order = "(depth, event_nid) > (?, ?)", "ASC"
        if end is not None:
            bounds += " AND (depth, event_nid) <= (?, ?)"
    if end is not None:
        args += [end.depth, end.event_nid]
    rows = txn.query(
        f"SELECT depth, event_nid FROM events WHERE room_nid = ? AND {bounds} AND {IS_SHOWN}"
        f" ORDER BY depth {order}, event_nid {order} LIMIT ?",
        (*args, limit),
    )
    return [(TimelinePlace(depth, nid), nid) for depth, nid in rows]


def _select_by_time(
    txn: Transaction,
    room_nid: int,
    ts: int,
    direction: Direction,
    place: tuple[int, int] | None,
    limit: int,
) -> list[tuple[int, int]]:
    bound, side, order = (
        (">=", ">", "ASC") if direction is Direction.FORWARDS else ("<=", "<", "DESC")
    )
    further = "" if place is None else f" AND (origin_server_ts, event_nid) {side} (?, ?)"
    ordered = f"ORDER BY origin_server_ts {order}, event_nid {order} LIMIT ?"
    args = (room_nid, ts, *(place or ()), limit)
    # messages and state have an index each
    parts = [
        "SELECT * FROM (SELECT origin_server_ts, event_nid FROM events"
        f" WHERE room_nid = ? AND origin_server_ts {bound} ?"
        f"{further} AND {IS_SHOWN} AND {kind} {ordered}) AS part{number}"
        for number, kind in enumerate((IS_UNPURGED_MESSAGE, "state_key IS NOT NULL"))
    ]
    rows = txn.query(f"{' UNION ALL '.join(parts)} {ordered}", (*args, *args, limit))
    return [(sent, nid) for sent, nid in rows]


def _select_around(
    txn: Transaction, places: list[tuple[int, TimelinePlace]], before: int, after: int
) -> list[tuple[list[tuple[TimelinePlace, int]], list[tuple[TimelinePlace, int]]]]:
    return [
        (
            _select_page(
                txn,
                nid,
                TimelinePlace(here.depth, here.event_nid - 1),
                None,
                Direction.BACKWARDS,
                before,
            ),
            _select_page(txn, nid, here, None, Direction.FORWARDS, after),
        )
        for nid, here in places
    ]


def _select_first_after(txn: Transaction, room_nid: int, position: int) -> int | None:
    row = txn.query_one(
        "SELECT event_nid FROM events WHERE room_nid = ? AND position > ?"
        " ORDER BY position LIMIT 1",
        (room_nid, position),
    )
    return row[0] if row is not None else None


def _select_backward(txn: Transaction, room_nid: int) -> dict[str, int]:
    return dict(
        txn.query(
            "SELECT event_id, depth FROM backward_extremities WHERE room_nid = ?", (room_nid,)
        )
    )


def _select_gaps(txn: Transaction, room_nid: int, lowest: int, highest: int) -> Gaps:
    rows = txn.query(GAPS_SQL, (room_nid, lowest, highest, room_nid, lowest, highest))
    forgotten = [event_id for is_forgotten, event_id, _ in rows if is_forgotten]
    return Gaps(
        [event_id for is_forgotten, event_id, _ in rows if not is_forgotten],
        next(iter(forgotten), None),
    )


def move_backward_extremities(
    txn: WriteTransaction, room_nid: int, arrived: Iterable[str], missing: Iterable[str], depth: int
) -> None:
    """Update the backward extremities of a room: remove the arrived events, add the missing ones.

    `depth` is that of the event that names the missing ones.
    """
    txn.execute_many(
        "DELETE FROM backward_extremities WHERE room_nid = ? AND event_id = ?",
        [(room_nid, event_id) for event_id in arrived],
    )
    rows = [(room_nid, event_id, max(depth - 1, 0)) for event_id in missing]
    if rows:
        txn.execute_many(
            "INSERT INTO backward_extremities (room_nid, event_id, depth) VALUES (?, ?, ?)"
            " ON CONFLICT (room_nid, event_id) DO UPDATE SET depth = CASE"
            " WHEN excluded.depth > backward_extremities.depth THEN excluded.depth"
            " ELSE backward_extremities.depth END",
            rows,
        )
