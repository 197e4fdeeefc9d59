"""Leaves of local users that remote servers have not received yet.

They decline invites and withdraw knocks. The transaction that stores a leave also adds one row for
each server that is to receive the leave (`storage/rooms/out_of_room_memberships.py`). The number of
rows for a server is limited; further ones are not stored. If a server is unreachable when a leave
is sent, all leaves for this server are postponed together.
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MAX_PER_SERVER: Final = 500
"""The maximum number of pending leaves per server; further ones are not stored."""


class PendingLeave(msgspec.Struct, frozen=True):
    """A leave to send to a server. The caller that leased it is sending it."""

    room_nid: int
    user_id: str
    server: str
    event_id: str
    left_ts: int
    due_ts: int
    """When it is retried, unless it is removed before."""
    attempts: int
    """Attempts so far, including the current one."""
    ended_event_id: str
    """The ID of the invite or knock that it ends, as that server knows it; empty: unknown."""


class PendingLeaveStore:
    """Reads and writes the table `pending_leaves`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_due_servers(self, now: int, limit: int) -> list[str]:
        """Return up to `limit` servers with due leaves."""
        return await self._database.read_quickly(
            "get_servers_of_pending_leaves", _select_servers, now, limit
        )

    async def lease_due(
        self, server: str, now: int, pause: Callable[[int], int]
    ) -> PendingLeave | None:
        """Take the first due leave of a server. It is due again, for any caller, after
        `pause(attempts)` ms."""

        def write(txn: WriteTransaction) -> PendingLeave | None:
            found = txn.query_one(
                "SELECT room_nid, user_id, event_id, left_ts, ended_event_id,"
                " (SELECT MAX(attempts) FROM pending_leaves WHERE server = ?) FROM pending_leaves"
                " WHERE server = ? AND due_ts <= ? ORDER BY due_ts, room_nid, user_id LIMIT 1",
                (server, server, now),
            )
            if found is None:
                return None
            room_nid, user_id, event_id, since_ts, ended, attempts = found
            due = now + pause(attempts)
            leave = PendingLeave(
                room_nid, user_id, server, event_id, since_ts, due, attempts + 1, ended
            )
            sql = (
                "UPDATE pending_leaves SET due_ts = ?, attempts = ?"
                " WHERE room_nid = ? AND user_id = ? AND server = ?"
            )
            txn.execute(sql, (leave.due_ts, leave.attempts, room_nid, user_id, server))
            return leave

        return await self._database.write("lease_pending_leave", write)

    async def postpone(self, leave: PendingLeave, until: int = 0) -> None:
        """Postpone a leave whose server is unreachable until its due time, or `until` (ms) if that
        is later. The other leaves of the server wait as long and come first then."""
        due = max(leave.due_ts, until)

        def write(txn: WriteTransaction) -> None:
            txn.execute(
                "UPDATE pending_leaves SET due_ts = ?"
                " WHERE room_nid = ? AND user_id = ? AND server = ? AND due_ts = ?",
                (due, leave.room_nid, leave.user_id, leave.server, leave.due_ts),
            )
            sql = (
                "UPDATE pending_leaves SET due_ts = ?, attempts = ? WHERE server = ? AND due_ts < ?"
            )
            txn.execute(sql, (due - 1, leave.attempts, leave.server, due - 1))

        await self._database.write("postpone_pending_leaves", write)

    async def postpone_server(self, server: str, until: int) -> None:
        """Postpone all leaves of a server until then (ms)."""

        def write(txn: WriteTransaction) -> None:
            sql = "UPDATE pending_leaves SET due_ts = ? WHERE server = ? AND due_ts < ?"
            txn.execute(sql, (until, server, until))

        await self._database.write("postpone_leaves_of_server", write)

    async def is_unchanged(self, leave: PendingLeave) -> bool:
        """Whether the caller that took the leave may still send it: the membership has not changed
        since, and no local user is joining the room on any node."""
        return await self._database.read_quickly("is_pending_leave_unchanged", _is_unchanged, leave)

    async def set_due(self, room_id: str, due: int) -> None:
        """Make the leaves of a room due from then on (ms), and take them from their current
        callers."""

        def write(txn: WriteTransaction) -> None:
            sql = (
                "UPDATE pending_leaves SET due_ts = ? WHERE room_nid = (SELECT room_nid FROM rooms"
                " WHERE room_id = ?)"
            )
            txn.execute(sql, (due, room_id))

        await self._database.write("set_pending_leaves_due", write)

    async def remove_of_user(self, room_id: str, user_id: str, due: int) -> None:
        """Delete a user's leaves of a room that the user has joined. Leaves of other users become
        due then (ms)."""

        def write(txn: WriteTransaction) -> None:
            where = "WHERE room_nid = (SELECT room_nid FROM rooms WHERE room_id = ?)"
            txn.execute(f"DELETE FROM pending_leaves {where} AND user_id = ?", (room_id, user_id))
            txn.execute(f"UPDATE pending_leaves SET due_ts = ? {where}", (due, room_id))

        await self._database.write("remove_pending_leaves", write)

    async def remove(self, leave: PendingLeave) -> None:
        """Remove a leave that was sent, or that is no longer to be sent."""

        def write(txn: WriteTransaction) -> None:
            sql = (
                "DELETE FROM pending_leaves WHERE room_nid = ? AND user_id = ? AND server = ?"
                " AND event_id = ?"
            )
            txn.execute(sql, (leave.room_nid, leave.user_id, leave.server, leave.event_id))

        await self._database.write("remove_pending_leave", write)


def set_pending_leaves(
    txn: WriteTransaction,
    room_nid: int,
    user_id: str,
    event_id: str,
    servers: Mapping[str, str],
    now: int,
) -> None:
    """Replace a user's pending leaves of a room by one leave for these servers, each with the ID of
    the event that it ends."""
    txn.execute(
        "DELETE FROM pending_leaves WHERE room_nid = ? AND user_id = ?", (room_nid, user_id)
    )
    for server, ended in servers.items():
        pending = txn.query_one("SELECT COUNT(*) FROM pending_leaves WHERE server = ?", (server,))
        if pending is not None and pending[0] < MAX_PER_SERVER:
            txn.execute(
                "INSERT INTO pending_leaves (room_nid, user_id, server, event_id, left_ts,"
                " due_ts, ended_event_id)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (room_nid, user_id, server, event_id, now, now, ended),
            )


def _select_servers(txn: Transaction, now: int, limit: int) -> list[str]:
    sql = (
        "SELECT server FROM pending_leaves WHERE due_ts <= ? GROUP BY server"
        " ORDER BY MIN(due_ts) LIMIT ?"
    )
    return [server for (server,) in txn.query(sql, (now, limit))]


def _is_unchanged(txn: Transaction, leave: PendingLeave) -> bool:
    row = txn.query_one(
        "SELECT event_id, due_ts FROM pending_leaves"
        " WHERE room_nid = ? AND user_id = ? AND server = ?",
        (leave.room_nid, leave.user_id, leave.server),
    )
    return row is not None and tuple(row) == (leave.event_id, leave.due_ts)
