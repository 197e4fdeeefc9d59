"""Invites of users of other servers into rooms that were just made, which are still to be sent.

Laws:
- They are noted in the write that makes the room.
- Whoever sends those of a room has it to themselves until a time, which they put off with each: if they end without a word, others go on.
"""

from collections.abc import Sequence

import msgspec

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction


class PlannedInvite(msgspec.Struct, frozen=True):
    """One. `content` is JSON."""

    user_id: str
    sender: str
    content: bytes


class PlannedInviteStore:
    """The table of them. Times are milliseconds since 1970."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take_due(self, now: int, until: int, limit: int) -> list[int]:
        """Up to so many rooms for which something is to be done and nobody is at it. They are the caller's until then."""
        if not await self._database.read_quickly("has_planned_invites", _select_due, now, 1):
            return []

        def write(txn: WriteTransaction) -> list[int]:
            rooms = _select_due(txn, now, limit)
            txn.execute_many(
                "UPDATE planned_invites SET due_ts = ? WHERE room_nid = ?", [(until, nid) for nid in rooms]
            )
            return rooms

        return await self._database.write("take_planned_invites", write)

    async def go_on(self, room_nid: int, done: str | None, until: int) -> PlannedInvite | None:
        """The next one of a room, which is the caller's until then, once that of `done` is no longer planned; None: there is no more."""

        def write(txn: WriteTransaction) -> PlannedInvite | None:
            if done is not None:
                txn.execute("DELETE FROM planned_invites WHERE room_nid = ? AND user_id = ?", (room_nid, done))
            row = txn.query_one(
                "SELECT user_id, sender, content FROM planned_invites WHERE room_nid = ? ORDER BY turn LIMIT 1",
                (room_nid,),
            )
            if row is None:
                return None
            txn.execute("UPDATE planned_invites SET due_ts = ? WHERE room_nid = ?", (until, room_nid))
            return PlannedInvite(row[0], row[1], bytes(row[2]))

        return await self._database.write("go_on_with_planned_invites", write)


def add_planned_invites(
    txn: WriteTransaction, room_nid: int, user_ids: Sequence[str], sender: str, content: bytes, due_ts: int
) -> None:
    """Plan to invite these users, in this order."""
    txn.execute_many(
        "INSERT INTO planned_invites (room_nid, user_id, turn, sender, content, due_ts) VALUES (?, ?, ?, ?, ?, ?)",
        [(room_nid, user_id, turn, sender, content, due_ts) for turn, user_id in enumerate(user_ids)],
    )


def _select_due(txn: Transaction, now: int, limit: int) -> list[int]:
    sql = "SELECT room_nid FROM planned_invites WHERE due_ts <= ? GROUP BY room_nid ORDER BY MIN(due_ts), room_nid LIMIT ?"
    return [nid for (nid,) in txn.query(sql, (now, limit))]
