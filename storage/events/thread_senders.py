"""Stores how many events each sender sent to each thread, and the latest of these events. So the
aggregation of a thread is read without all its events.

Laws:
- Rows are derived from the table `relations` only, and change in the same transaction. A child that
  is already in `relations` is not counted again, and only a child that was there is subtracted. So
  the count is always exact.
- Adding a child costs one statement. If a sender's latest child is removed, the new latest one is
  found in `relations`.
"""

from collections.abc import Sequence
from typing import Final

from storage.engine.transaction import WriteTransaction

_KEY: Final = "target = ? AND room_nid = ? AND sender = ?"
_IS_LATER: Final = (
    "(excluded.depth, excluded.event_nid) > (thread_senders.depth, thread_senders.event_nid)"
)


def add_senders(txn: WriteTransaction, children: Sequence[tuple[str, int, str, int, int]]) -> None:
    """Count different children of threads (root, room, sender, depth, number) before they are
    inserted; children in `relations` are counted already."""
    if children:
        txn.execute_many(
            "INSERT INTO thread_senders (target, room_nid, sender, count, depth,"
            " event_nid) SELECT ?, ?, ?, 1, ?, ?"
            " WHERE NOT EXISTS (SELECT 1 FROM relations"
            " WHERE target = ? AND rel_type = 'm.thread' AND depth = ?"
            " AND event_nid = ?) ON CONFLICT (target, room_nid, sender) DO UPDATE"
            " SET count = thread_senders.count + 1,"
            f" depth = CASE WHEN {_IS_LATER} THEN excluded.depth ELSE thread_senders.depth END,"
            f" event_nid = CASE WHEN {_IS_LATER} THEN excluded.event_nid"
            " ELSE thread_senders.event_nid END",
            [(*child, child[0], child[3], child[4]) for child in children],
        )


def subtract_senders(txn: WriteTransaction, children: Sequence[tuple[str, int, str, int]]) -> None:
    """Subtract removed children of threads (root, room, sender, number)."""
    if not children:
        return
    keys = [child[:3] for child in children]
    txn.execute_many(f"UPDATE thread_senders SET count = count - 1 WHERE {_KEY}", keys)
    txn.execute_many(
        f"DELETE FROM thread_senders WHERE {_KEY} AND count = 0", list(dict.fromkeys(keys))
    )
    # the plus makes databases walk back along the key of the thread
    txn.execute_many(
        "UPDATE thread_senders SET (depth, event_nid) = (SELECT r.depth, r.event_nid"
        " FROM relations AS r"
        " WHERE r.target = thread_senders.target AND r.rel_type = 'm.thread'"
        " AND +r.room_nid = thread_senders.room_nid"
        " AND r.sender = thread_senders.sender ORDER BY r.depth DESC, r.event_nid DESC LIMIT 1)"
        f" WHERE {_KEY}"
        " AND event_nid = ?",
        children,
    )
