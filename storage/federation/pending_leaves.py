"""Which servers have yet to hear that users of ours declined invites, or took knocks back.

Noted in the write that keeps the leave (`storage/rooms/out_of_room_memberships.py`). All that a
server is to hear waits together: it is the server that cannot be had, as a rule.
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MOST_FOR_A_SERVER: Final = 500
"""Leaves that are to be told to one; further ones are not noted."""


class UntoldLeave(msgspec.Struct, frozen=True):
    """A leave that a server is to hear of, and whoever was given this is telling it."""

    room_nid: int
    user_id: str
    server: str
    event_id: str
    since_ts: int
    due_ts: int
    """When it is to be tried again, unless it is removed before."""
    attempts: int
    """With the one that is under way."""
    ended: str
    """The invite or knock that it ends, as that server told it; empty: not known."""


class UntoldLeaveStore:
    """The table of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_due_servers(self, now: int, limit: int) -> list[str]:
        """Up to so many servers for which something is due."""
        return await self._database.read_quickly(
            "get_servers_of_untold_leaves", _select_servers, now, limit
        )

    async def take_due(
        self, server: str, now: int, pause: Callable[[int], int]
    ) -> UntoldLeave | None:
        """What that server should have heard first. Nobody else is given it for `pause(attempts)`
        ms, when it is due again."""

        def write(txn: WriteTransaction) -> UntoldLeave | None:
            found = txn.query_one(
                "SELECT room_nid, user_id, event_id, since_ts, ended,"
                " (SELECT MAX(attempts) FROM untold_leaves WHERE server = ?) FROM untold_leaves"
                " WHERE server = ? AND due_ts <= ? ORDER BY due_ts, room_nid, user_id LIMIT 1",
                (server, server, now),
            )
            if found is None:
                return None
            room_nid, user_id, event_id, since_ts, ended, attempts = found
            due = now + pause(attempts)
            leave = UntoldLeave(
                room_nid, user_id, server, event_id, since_ts, due, attempts + 1, ended
            )
            sql = "UPDATE untold_leaves SET due_ts = ?, attempts = ? WHERE room_nid = ? AND user_id = ? AND server = ?"
            txn.execute(sql, (leave.due_ts, leave.attempts, room_nid, user_id, server))
            return leave

        return await self._database.write("take_untold_leave", write)

    async def put_off(self, leave: UntoldLeave, until: int = 0) -> None:
        """Its server could not be had: it is due again when it was to be, and not before then (ms);
        what else the server is to hear waits as long, and comes first then."""
        due = max(leave.due_ts, until)

        def write(txn: WriteTransaction) -> None:
            txn.execute(
                "UPDATE untold_leaves SET due_ts = ? WHERE room_nid = ? AND user_id = ? AND server = ? AND due_ts = ?",
                (due, leave.room_nid, leave.user_id, leave.server, leave.due_ts),
            )
            sql = (
                "UPDATE untold_leaves SET due_ts = ?, attempts = ? WHERE server = ? AND due_ts < ?"
            )
            txn.execute(sql, (due - 1, leave.attempts, leave.server, due - 1))

        await self._database.write("put_off_untold_leaves", write)

    async def let_wait(self, server: str, until: int) -> None:
        """Nothing is due for that server before then (ms)."""

        def write(txn: WriteTransaction) -> None:
            sql = "UPDATE untold_leaves SET due_ts = ? WHERE server = ? AND due_ts < ?"
            txn.execute(sql, (until, server, until))

        await self._database.write("let_untold_leaves_wait", write)

    async def is_unchanged(self, leave: UntoldLeave) -> bool:
        """Whether it is still to be told by whom it was given to: nothing else became of the
        membership, nor is anybody of ours about to enter the room, through whichever node."""
        return await self._database.read_quickly("is_untold_leave_unchanged", _is_unchanged, leave)

    async def set_due(self, room_id: str, due: int) -> None:
        """What is to be told of leaves of the room is told from then on (ms), and not by whoever
        was telling it until now."""

        def write(txn: WriteTransaction) -> None:
            sql = "UPDATE untold_leaves SET due_ts = ? WHERE room_nid = (SELECT room_nid FROM rooms WHERE room_id = ?)"
            txn.execute(sql, (due, room_id))

        await self._database.write("set_untold_leaves_due", write)

    async def forget(self, room_id: str, user_id: str, due: int) -> None:
        """The user has entered the room: nothing is to be told of former leaves of theirs; of those
        of others, from then on (ms)."""

        def write(txn: WriteTransaction) -> None:
            where = "WHERE room_nid = (SELECT room_nid FROM rooms WHERE room_id = ?)"
            txn.execute(f"DELETE FROM untold_leaves {where} AND user_id = ?", (room_id, user_id))
            txn.execute(f"UPDATE untold_leaves SET due_ts = ? {where}", (due, room_id))

        await self._database.write("forget_untold_leaves", write)

    async def remove(self, leave: UntoldLeave) -> None:
        """It was told, or is to be told no more."""

        def write(txn: WriteTransaction) -> None:
            sql = "DELETE FROM untold_leaves WHERE room_nid = ? AND user_id = ? AND server = ? AND event_id = ?"
            txn.execute(sql, (leave.room_nid, leave.user_id, leave.server, leave.event_id))

        await self._database.write("remove_untold_leave", write)


def set_untold_leaves(
    txn: WriteTransaction,
    room_nid: int,
    user_id: str,
    event_id: str,
    servers: Mapping[str, str],
    now: int,
) -> None:
    """A leave is kept, of which these servers are to hear, each with what it told that is ended by
    it; whatever was to be told of the user's memberships before is so no more."""
    txn.execute("DELETE FROM untold_leaves WHERE room_nid = ? AND user_id = ?", (room_nid, user_id))
    for server, ended in servers.items():
        waiting = txn.query_one("SELECT COUNT(*) FROM untold_leaves WHERE server = ?", (server,))
        if waiting is not None and waiting[0] < MOST_FOR_A_SERVER:
            txn.execute(
                "INSERT INTO untold_leaves (room_nid, user_id, server, event_id, since_ts, due_ts, ended)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (room_nid, user_id, server, event_id, now, now, ended),
            )


def _select_servers(txn: Transaction, now: int, limit: int) -> list[str]:
    sql = "SELECT server FROM untold_leaves WHERE due_ts <= ? GROUP BY server ORDER BY MIN(due_ts) LIMIT ?"
    return [server for (server,) in txn.query(sql, (now, limit))]


def _is_unchanged(txn: Transaction, leave: UntoldLeave) -> bool:
    row = txn.query_one(
        "SELECT event_id, due_ts FROM untold_leaves WHERE room_nid = ? AND user_id = ? AND server = ?",
        (leave.room_nid, leave.user_id, leave.server),
    )
    return row is not None and tuple(row) == (leave.event_id, leave.due_ts)
