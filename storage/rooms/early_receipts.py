"""Receipts of remote users that arrived before the events to which they refer.

A server sends a receipt immediately, while the event may still be on its way from a third server.
Without the event, the receipt's place in the timeline is unknown, and its thread cannot be checked.
So it is stored, but not sent to clients. The write that later stores the event, on any node, turns
the receipt into an ordinary one. If the thread is wrong or the user has left, it deletes the
receipt.

Law: for each user, room and thread that receipts name, only the latest early receipt is stored. The
number of early receipts is limited per server and in total, and the oldest are deleted first. A
deleted receipt is missing only until the user's next receipt.
"""

from collections.abc import Iterable, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.event_threads import select_thread_of
from storage.events.events import EventFlag, EventRow, select_flags
from storage.rooms.receipts import NewReceipt, is_valid_thread, set_receipts

PUBLIC = "m.read"
MAX_PER_SERVER = 200
MAX_RECEIPTS = 10_000


class EarlyReceipt(msgspec.Struct, frozen=True):
    """A receipt for an event that is not stored yet."""

    room_nid: int
    user_id: str
    thread_id: str
    event_id: str
    ts: int


class EarlyReceiptStore:
    """Adds to the table `early_receipts`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_receipts(self, server: str, receipts: Sequence[EarlyReceipt]) -> frozenset[str]:
        """Store receipts until their events arrive. Return the events that have arrived already:
        receipts at these are not stored."""
        return await self._database.write("add_early_receipts", _add, server, receipts)


def select_awaited(txn: Transaction, event_id: str) -> tuple[int | None, bool]:
    """Return the flags of an event, if it is stored, and whether receipts wait for it. One query
    for both, since it runs for each arrival."""
    row = txn.query_one(
        "SELECT (SELECT flags FROM events WHERE event_id = ?),"
        " (SELECT count(*) FROM early_receipts WHERE event_id = ?)",
        (event_id, event_id),
    )
    return (None, False) if row is None else (row[0], row[1] > 0)


def apply_early_receipts(txn: WriteTransaction, room_id: str, rows: Iterable[EventRow]) -> None:
    """Apply the stored receipts of these events, which are written in this transaction, where they
    are valid."""
    events = {row.event_id: row for row in rows}
    stored = txn.query_in(
        "SELECT event_id, room_nid, user_id, thread_id, ts FROM early_receipts"
        " WHERE event_id IN {keys}",
        events,
    )
    txn.execute_many(
        "DELETE FROM early_receipts WHERE event_id = ?", [(event_id,) for event_id in events]
    )
    joined = {
        (room_nid, user_id)
        for room_nid in {row.room_nid for row in events.values()}
        for (user_id,) in txn.query_in(
            "SELECT user_id FROM memberships"
            " WHERE room_nid = ? AND membership = 'join' AND user_id IN {keys}",
            {user_id for _, _, user_id, _, _ in stored},
            before=(room_nid,),
        )
    }
    threads = {
        event_id: select_thread_of(txn, row.room_nid, row.event_nid)
        for event_id, row in events.items()
    }
    set_receipts(
        txn,
        [
            NewReceipt(
                room_nid,
                room_id,
                user_id,
                PUBLIC,
                thread_id,
                event_id,
                events[event_id].position,
                ts,
            )
            for event_id, room_nid, user_id, thread_id, ts in stored
            if (room_nid, user_id) in joined
            and room_nid == events[event_id].room_nid
            and is_valid_thread(thread_id, event_id, threads[event_id])
        ],
    )


def _add(txn: WriteTransaction, server: str, receipts: Sequence[EarlyReceipt]) -> frozenset[str]:
    flags = select_flags(txn, {receipt.event_id for receipt in receipts})
    arrived = frozenset(
        event_id for event_id, each in flags.items() if not each & EventFlag.OUTLIER
    )
    early = [receipt for receipt in receipts if receipt.event_id not in arrived]
    first = txn.allocate("early_receipt", len(early))
    txn.execute_many(
        "INSERT INTO early_receipts (room_nid, ordinal, ts, user_id, thread_id, event_id, server)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (room_nid, user_id, thread_id) DO UPDATE SET"
        " ordinal = excluded.ordinal, ts = excluded.ts, event_id = excluded.event_id,"
        " server = excluded.server",
        [
            (
                receipt.room_nid,
                number,
                receipt.ts,
                receipt.user_id,
                receipt.thread_id,
                receipt.event_id,
                server,
            )
            for number, receipt in enumerate(early, first)
        ],
    )
    oldest = "SELECT ordinal FROM early_receipts {} ORDER BY ordinal DESC LIMIT 1 OFFSET ?"
    txn.execute(
        "DELETE FROM early_receipts WHERE server = ?"
        f" AND ordinal <= ({oldest.format('WHERE server = ?')})",
        (server, server, MAX_PER_SERVER),
    )
    txn.execute(
        f"DELETE FROM early_receipts WHERE ordinal <= ({oldest.format('')})", (MAX_RECEIPTS,)
    )
    return arrived
