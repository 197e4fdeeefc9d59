"""Receipts, public and private, of rooms and of threads: up to which event a user has read.

spec: client-server-api#receipts
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import nsmallest
from operator import attrgetter

import msgspec

from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.event_threads import EventThread
from storage.events.events import select_progress

UNTHREADED = ""
"""The `thread_id` of a receipt for a whole room."""
MAIN_THREAD = "main"
"""The `thread_id` of a receipt for the main timeline."""
INLINE_POSITIONS = 2000
"""A range of at most this many positions is read on the calling thread, if the database allows
that."""
INLINE_ROOMS = 3
"""The receipts of at most this many rooms are read on the calling thread, if the database allows
that."""
MAX_THREADS = 500
"""The maximum number of threads of a room for which a user has receipts of one type. The ones
furthest back are deleted first; `threads_read_upto` then stands for them."""


class ReceiptRow(msgspec.Struct, frozen=True, gc=False):
    """The latest receipt of a user, of one type, for one thread (or the whole room)."""

    room_nid: int
    user_id: str
    receipt_type: str
    thread_id: str
    event_id: str
    event_position: int | None
    """The position of the event that was read. None for a backfilled event from before our
    arrival."""
    ts: int
    position: int


class NewReceipt(msgspec.Struct, frozen=True):
    """A receipt that may move the stored one forward."""

    room_nid: int
    room_id: str
    user_id: str
    receipt_type: str
    thread_id: str
    event_id: str
    event_position: int | None
    ts: int


_COLUMNS = "room_nid, user_id, receipt_type, thread_id, event_id, event_position, ts, position"


class ReceiptStore:
    """Reads and writes the table `receipts`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_receipts(
        self, ranges: Mapping[int, tuple[int, int]]
    ) -> Mapping[int, list[ReceiptRow]]:
        """Return for each room the receipts that changed in its range (after, up to)."""
        return await self._database.read_without_snapshot(
            "get_receipts", _select_receipts, dict(ranges)
        )

    async def get_receipts_and_own(
        self, ranges: Mapping[int, tuple[int, int]], user_id: str, room_nids: Iterable[int]
    ) -> tuple[Mapping[int, list[ReceiptRow]], Mapping[int, list[ReceiptRow]]]:
        """Return the results of `get_receipts` and `get_receipts_of_user` in one query."""
        # each position is at most one receipt
        few = sum(upto - after for after, upto in ranges.values()) <= INLINE_POSITIONS
        read = self._database.read_quickly if few else self._database.read_without_snapshot
        return await read("get_receipts", _select_both, dict(ranges), user_id, list(room_nids))

    async def get_receipts_of_rooms(
        self, room_nids: Collection[int], limit: int
    ) -> dict[int, list[ReceiptRow]]:
        """Return up to `limit` receipts of each room, the oldest first."""
        read = (
            self._database.read_quickly
            if len(room_nids) <= INLINE_ROOMS
            else self._database.read_without_snapshot
        )
        return await read("get_receipts_of_rooms", _select_of_rooms, room_nids, limit)

    async def get_receipts_of_user(
        self, user_id: str, room_nids: Iterable[int]
    ) -> Mapping[int, list[ReceiptRow]]:
        """Return a user's own receipts by room."""
        return await self._database.read_quickly(
            "get_receipts_of_user", _select_of_user, user_id, list(room_nids)
        )

    async def set_receipts(self, receipts: Sequence[NewReceipt]) -> None:
        """Move receipts forward, unless they already stand there or further on."""
        await self._database.write("set_receipts", set_receipts, receipts)


def is_valid_thread(thread_id: str, event_id: str, thread: EventThread) -> bool:
    """Whether a receipt for that thread may be at an event that belongs to `thread`.

    A thread root is in the main timeline, and so are its other relations. A client that shows it
    with its thread may also put a receipt for the thread there. spec:
    client-server-api#threaded-read-receipts
    """
    if thread_id == MAIN_THREAD:
        return thread.in_main
    return thread_id in (UNTHREADED, event_id, thread.root, thread.top)


def threads_read_upto(receipts: Sequence[ReceiptRow]) -> int:
    """Return the position up to which all threads of a room count as read. 0 until receipts were
    deleted.

    Computed from all receipts of a user in a room. It is at least the position of each deleted
    receipt and never moves back: each deletion takes the receipt furthest back, except the one just
    added. So all that remain, except that one, stand further on than all deleted ones. Older events
    of other threads count as read too: a user with so many threads is not notified again of the
    oldest.
    """
    if len(receipts) < MAX_THREADS:
        return 0
    by_type: dict[str, list[int]] = {}
    for row in receipts:
        if row.thread_id not in (UNTHREADED, MAIN_THREAD):
            by_type.setdefault(row.receipt_type, []).append(row.event_position or 0)
    full = (positions for positions in by_type.values() if len(positions) >= MAX_THREADS)
    return max((nsmallest(2, positions)[-1] for positions in full), default=0)


def _select_receipts(
    txn: Transaction, ranges: dict[int, tuple[int, int]]
) -> dict[int, list[ReceiptRow]]:
    rows = txn.query_each(
        f"SELECT {_COLUMNS} FROM receipts WHERE room_nid = ? AND position > ? AND position <= ?",
        [(room_nid, after, upto) for room_nid, (after, upto) in ranges.items()],
    )
    return {
        room_nid: sorted((ReceiptRow(*row) for row in found), key=attrgetter("position"))
        for room_nid, found in zip(ranges, rows, strict=True)
    }


def _select_of_rooms(
    txn: Transaction, room_nids: Collection[int], limit: int
) -> dict[int, list[ReceiptRow]]:
    sql = f"SELECT {_COLUMNS} FROM receipts WHERE room_nid = ? ORDER BY position LIMIT ?"
    found = txn.query_each(sql, [(room_nid, limit) for room_nid in room_nids])
    return {
        nid: [ReceiptRow(*row) for row in rows] for nid, rows in zip(room_nids, found, strict=True)
    }


def _select_both(
    txn: Transaction, ranges: dict[int, tuple[int, int]], user_id: str, room_nids: list[int]
) -> tuple[dict[int, list[ReceiptRow]], dict[int, list[ReceiptRow]]]:
    sql = (
        f"SELECT {_COLUMNS}, 1 AS own FROM receipts WHERE room_nid = ? AND user_id = ? UNION ALL"
        f" SELECT {_COLUMNS}, 0 AS own FROM receipts"
        " WHERE room_nid = ? AND position > ? AND position <= ?"
    )
    rooms = dict.fromkeys((*ranges, *room_nids))
    requested, empty = set(room_nids), (0, 0)
    args = [
        (nid, user_id if nid in requested else "", nid, *ranges.get(nid, empty)) for nid in rooms
    ]
    changed: dict[int, list[ReceiptRow]] = {nid: [] for nid in ranges}
    own: dict[int, list[ReceiptRow]] = {}
    for nid, rows in zip(rooms, txn.query_each(sql, args), strict=True):
        for *columns, is_own in rows:
            (own if is_own else changed).setdefault(nid, []).append(ReceiptRow(*columns))
        if nid in changed:
            changed[nid].sort(key=attrgetter("position"))
    return changed, own


def _select_of_user(
    txn: Transaction, user_id: str, room_nids: list[int]
) -> dict[int, list[ReceiptRow]]:
    rows = txn.query_in(
        f"SELECT {_COLUMNS} FROM receipts WHERE room_nid IN {{keys}} AND user_id = ?",
        room_nids,
        after=(user_id,),
    )
    found: dict[int, list[ReceiptRow]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(ReceiptRow(*row))
    return found


def set_receipts(txn: WriteTransaction, receipts: Sequence[NewReceipt]) -> None:
    """Do `ReceiptStore.set_receipts` in a transaction."""
    for new in receipts:
        row = ReceiptRow(
            new.room_nid,
            new.user_id,
            new.receipt_type,
            new.thread_id,
            new.event_id,
            new.event_position,
            new.ts,
            0,
        )
        _set_receipt(txn, new.room_id, row)


def _set_receipt(txn: WriteTransaction, room_id: str, receipt: ReceiptRow) -> None:
    key = (receipt.room_nid, receipt.user_id, receipt.receipt_type, receipt.thread_id)
    old = txn.query_one(
        "SELECT event_id, event_position, ts FROM receipts"
        " WHERE room_nid = ? AND user_id = ? AND receipt_type = ? AND thread_id = ?",
        key,
    )
    if old is not None:
        if old[0] == receipt.event_id:
            return
        if old[1] is not None and (
            receipt.event_position is None or receipt.event_position <= old[1]
        ):
            return
        if (
            old[1] is None
            and receipt.event_position is None
            and _is_further_back(txn, receipt, old[0], old[2])
        ):
            return
    position = txn.next_position()
    row = ReceiptRow(*key, receipt.event_id, receipt.event_position, receipt.ts, position)
    txn.execute(
        f"INSERT INTO receipts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (room_nid, user_id, receipt_type, thread_id) DO UPDATE"
        " SET event_id = excluded.event_id,"
        " event_position = excluded.event_position, ts = excluded.ts, position = excluded.position",
        (*key, row.event_id, row.event_position, row.ts, row.position),
    )
    if old is None and receipt.thread_id not in (UNTHREADED, MAIN_THREAD):
        _remove_earliest(txn, key)
    txn.announce(Change(position, Topic.RECEIPT, room_id, receipt.user_id, row))


def _is_further_back(
    txn: WriteTransaction, receipt: ReceiptRow, old_event_id: str, old_ts: int
) -> bool:
    """Compare two receipts at events from the past by these events. If one event is unknown,
    compare their timestamps."""
    progress = select_progress(txn, receipt.room_nid, [receipt.event_id, old_event_id])
    if len(progress) < 2:
        return receipt.ts < old_ts
    return progress[receipt.event_id] < progress[old_event_id]


def _remove_earliest(txn: WriteTransaction, added: tuple[int, str, str, str]) -> None:
    """Make room for a receipt of one more thread. Clients keep the receipts that they got."""
    rows = txn.query(
        "SELECT thread_id FROM receipts WHERE room_nid = ? AND user_id = ? AND receipt_type = ?"
        " AND thread_id NOT IN (?, ?, ?) ORDER BY COALESCE(event_position, 0) DESC, position DESC",
        (*added[:3], UNTHREADED, MAIN_THREAD, added[3]),
    )
    txn.execute_many(
        "DELETE FROM receipts WHERE room_nid = ? AND user_id = ? AND receipt_type = ?"
        " AND thread_id = ?",
        [(*added[:3], thread_id) for (thread_id,) in rows[MAX_THREADS - 1 :]],
    )
