"""Invites of users of other servers into rooms that were just made, which are still to be sent.

Laws:
- They are noted in the write that makes the room, and sent in their order.
- Whoever sends those of a room has it to themselves until a time, which stands at the first of them
  and is put off with each that is done. If they end without a word, others go on then; if they come
  back after that, they find that it is not theirs any more.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

ITS_TURN_HAS_NOT_COME: Final = 2**63 - 1
"""Stands for the time at all but the first of a room."""


class PlannedInvite(msgspec.Struct, frozen=True):
    """One. `content` is JSON."""

    user_id: str
    sender: str
    content: bytes


class PlannedInviteStore:
    """The table of them. Times are milliseconds since 1970."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take_due(
        self, now: int, until: int, limit: int
    ) -> Mapping[int, Sequence[PlannedInvite]]:
        """What is left in up to so many rooms at which nobody is, in order, by the room's number.
        They are the caller's until then."""
        if not await self._database.read_quickly("has_planned_invites", _select_due, now, 1):
            return {}

        def write(txn: WriteTransaction) -> dict[int, list[PlannedInvite]]:
            due = _select_due(txn, now, limit)
            txn.execute_many(
                "UPDATE planned_invites SET due_ts = ? WHERE room_nid = ? AND due_ts <= ?",
                [(until, room_nid, now) for room_nid in due],
            )
            return {room_nid: _select_left(txn, room_nid) for room_nid in due}

        return await self._database.write("take_planned_invites", write)

    async def release(self) -> None:
        """Nobody is at any of them."""
        await self._database.write("release_planned_invites", _release)

    async def go_on(
        self, room_nid: int, done: str, following: str | None, held_until: int, until: int
    ) -> bool:
        """That one is done, which was the caller's; the following one, if there is one, is theirs
        until then. False: it was not theirs any more, nor is what follows."""

        def write(txn: WriteTransaction) -> bool:
            was_theirs = txn.execute(
                "DELETE FROM planned_invites WHERE room_nid = ? AND user_id = ? AND due_ts = ?",
                (room_nid, done, held_until),
            )
            if was_theirs and following is not None:
                txn.execute(
                    "UPDATE planned_invites SET due_ts = ? WHERE room_nid = ? AND user_id = ?",
                    (until, room_nid, following),
                )
            return bool(was_theirs)

        return await self._database.write("go_on_with_planned_invites", write)

    async def give_back(self, room_nid: int, held_until: int) -> None:
        """Others may go on at once."""

        def write(txn: WriteTransaction) -> None:
            txn.execute(
                "UPDATE planned_invites SET due_ts = 0 WHERE room_nid = ? AND due_ts = ?",
                (room_nid, held_until),
            )

        await self._database.write("give_planned_invites_back", write)


def add_planned_invites(
    txn: WriteTransaction, room_nid: int, invites: Sequence[PlannedInvite], held_until: int
) -> None:
    """Plan these, in this order; whoever writes it is at them until then."""
    txn.execute_many(
        "INSERT INTO planned_invites (room_nid, user_id, turn, sender, content, due_ts) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                room_nid,
                each.user_id,
                turn,
                each.sender,
                each.content,
                ITS_TURN_HAS_NOT_COME if turn else held_until,
            )
            for turn, each in enumerate(invites)
        ],
    )


def _release(txn: WriteTransaction) -> None:
    txn.execute("UPDATE planned_invites SET due_ts = 0 WHERE due_ts < ?", (ITS_TURN_HAS_NOT_COME,))


def _select_due(txn: Transaction, now: int, limit: int) -> list[int]:
    sql = "SELECT room_nid FROM planned_invites WHERE due_ts <= ? ORDER BY due_ts, room_nid LIMIT ?"
    return [nid for (nid,) in txn.query(sql, (now, limit))]


def _select_left(txn: Transaction, room_nid: int) -> list[PlannedInvite]:
    sql = "SELECT user_id, sender, content FROM planned_invites WHERE room_nid = ? ORDER BY turn"
    return [
        PlannedInvite(user_id, sender, bytes(data))
        for user_id, sender, data in txn.query(sql, (room_nid,))
    ]
