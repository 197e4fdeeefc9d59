"""Unsent invites to remote users: a client requested them when it created a room.

Laws:
- The write that creates a room stores its invites and their order. They are sent in this order.
- The node that sends a room's invites holds a lease. The row of the next invite to send stores the
  expiry of the lease (`due_ts`). After each invite the node deletes the row of this invite, and
  stores a later expiry in the row of the next one. If the node dies, another node continues after
  the expiry. If the first node then returns, it finds that it has lost the lease.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

NOT_DUE: Final = 2**63 - 1
"""`due_ts` of all but the first pending invite of a room."""


class PendingInvite(msgspec.Struct, frozen=True):
    """A pending invite. `content` is JSON."""

    user_id: str
    sender: str
    content: bytes


class PendingInviteStore:
    """Reads and writes the table `pending_invites`. Times are milliseconds since 1970."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lease_due(
        self, now: int, until: int, limit: int
    ) -> Mapping[int, Sequence[PendingInvite]]:
        """Lease up to `limit` rooms that no node works on, until `until`. Return their pending
        invites in order, by room number."""
        if not await self._database.read_quickly("has_due_planned_invites", _select_due, now, 1):
            return {}

        def write(txn: WriteTransaction) -> dict[int, list[PendingInvite]]:
            due = _select_due(txn, now, limit)
            txn.execute_many(
                "UPDATE pending_invites SET due_ts = ? WHERE room_nid = ? AND due_ts <= ?",
                [(until, room_nid, now) for room_nid in due],
            )
            return {room_nid: _select_pending(txn, room_nid) for room_nid in due}

        return await self._database.write("lease_planned_invites", write)

    async def end_all_leases(self) -> None:
        """End all leases."""
        await self._database.write("end_planned_invite_leases", _release)

    async def advance(
        self, room_nid: int, done: str, following: str | None, held_until: int, until: int
    ) -> bool:
        """Delete the sent invite `done`, and extend the lease to the following one. Return False if
        the lease was lost."""

        def write(txn: WriteTransaction) -> bool:
            held_lease = txn.execute(
                "DELETE FROM pending_invites WHERE room_nid = ? AND user_id = ? AND due_ts = ?",
                (room_nid, done, held_until),
            )
            if held_lease and following is not None:
                txn.execute(
                    "UPDATE pending_invites SET due_ts = ? WHERE room_nid = ? AND user_id = ?",
                    (until, room_nid, following),
                )
            return bool(held_lease)

        return await self._database.write("advance_planned_invites", write)

    async def end_lease(self, room_nid: int, held_until: int) -> None:
        """End the lease of a room, so that other nodes may continue at once."""

        def write(txn: WriteTransaction) -> None:
            txn.execute(
                "UPDATE pending_invites SET due_ts = 0 WHERE room_nid = ? AND due_ts = ?",
                (room_nid, held_until),
            )

        await self._database.write("end_planned_invite_lease", write)


def add_pending_invites(
    txn: WriteTransaction, room_nid: int, invites: Sequence[PendingInvite], held_until: int
) -> None:
    """Add pending invites in this order, leased to the caller until `held_until`."""
    txn.execute_many(
        "INSERT INTO pending_invites (room_nid, user_id, ordinal, sender, content, due_ts)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                room_nid,
                each.user_id,
                index,
                each.sender,
                each.content,
                NOT_DUE if index else held_until,
            )
            for index, each in enumerate(invites)
        ],
    )


def _release(txn: WriteTransaction) -> None:
    txn.execute("UPDATE pending_invites SET due_ts = 0 WHERE due_ts < ?", (NOT_DUE,))


def _select_due(txn: Transaction, now: int, limit: int) -> list[int]:
    sql = "SELECT room_nid FROM pending_invites WHERE due_ts <= ? ORDER BY due_ts, room_nid LIMIT ?"
    return [nid for (nid,) in txn.query(sql, (now, limit))]


def _select_pending(txn: Transaction, room_nid: int) -> list[PendingInvite]:
    sql = "SELECT user_id, sender, content FROM pending_invites WHERE room_nid = ? ORDER BY ordinal"
    return [
        PendingInvite(user_id, sender, bytes(data))
        for user_id, sender, data in txn.query(sql, (room_nid,))
    ]
