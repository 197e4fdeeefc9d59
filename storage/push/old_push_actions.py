"""Deletes push action rows (`event_push_actions.py`) of old events that the user has read, so that
the table stays small.

The position up to which a user's rows of a room are deleted is a *floor*.

Law: counts and lists of notifications use no events up to the user's floor in the room. Without
their rows these events would get the default action.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.rooms.receipts import UNTHREADED

REMOVED_AT_ONCE: Final = 500
"""Rows of one user in one room per step; further ones wait for the next."""

UserRoom = tuple[str, int]
"""A user and a room number: rows are read in this order."""
FIRST: Final[UserRoom] = ("", 0)


class _OldRows(msgspec.Struct, frozen=True):
    key: UserRoom
    positions: Sequence[int]


class OldPushActionStore:
    """Reads the floors, and deletes rows below them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_floors(self, user_id: str) -> Mapping[int, int]:
        """Return by room the position up to which the user's rows are deleted; rooms with all rows
        are missing."""
        return await self._database.read_quickly("get_push_action_floors", _select_floors, user_id)

    async def remove(
        self, after: UserRoom, before_ts: int, limit: int
    ) -> tuple[UserRoom | None, int]:
        """Read up to `limit` keys after one, and delete their rows of read events that were sent
        before a time (ms since 1970). Return the last key, None at the end, and the number of keys
        read."""
        found = await self._database.read(
            "get_old_push_actions", _select_old, after, before_ts, limit
        )
        if any(each.positions for each in found):
            await self._database.write(
                "remove_old_push_actions", _remove, [each for each in found if each.positions]
            )
        return found[-1].key if len(found) == limit else None, len(found)


def _select_floors(txn: Transaction, user_id: str) -> dict[int, int]:
    return dict(
        txn.query(
            "SELECT room_nid, position FROM event_push_action_floors WHERE user_id = ?", (user_id,)
        )
    )


def _select_old(txn: Transaction, after: UserRoom, before_ts: int, limit: int) -> list[_OldRows]:
    found: list[_OldRows] = []
    key = _next_key(txn, after)
    while key is not None:
        found.append(_OldRows(key, _select_positions(txn, key, before_ts)))
        if len(found) == limit:
            break
        key = _next_key(txn, key)
    return found


def _next_key(txn: Transaction, after: UserRoom) -> UserRoom | None:
    """Return the next key by one probe of the index, or two, however many rows a key has."""
    user_id, room_nid = after
    found = txn.query_one(
        "SELECT user_id, room_nid FROM event_push_actions WHERE user_id = ? AND room_nid > ?"
        " ORDER BY room_nid LIMIT 1",
        (user_id, room_nid),
    ) or txn.query_one(
        "SELECT user_id, room_nid FROM event_push_actions WHERE user_id > ?"
        " ORDER BY user_id, room_nid LIMIT 1",
        (user_id,),
    )
    return None if found is None else (found[0], found[1])


def _select_positions(txn: Transaction, key: UserRoom, before_ts: int) -> list[int]:
    user_id, room_nid = key
    read = txn.query_one(
        "SELECT max(event_position) FROM receipts WHERE room_nid = ? AND user_id = ?"
        " AND receipt_type IN ('m.read', 'm.read.private') AND thread_id = ?",
        (room_nid, user_id, UNTHREADED),
    )
    if read is None or read[0] is None:
        return []
    rows = txn.query(
        "SELECT o.position FROM event_push_actions AS o"
        " JOIN events AS e ON e.event_nid = o.event_nid"
        " WHERE o.user_id = ? AND o.room_nid = ? AND o.position <= ? AND e.origin_server_ts < ?"
        " ORDER BY o.position LIMIT ?",
        (user_id, room_nid, read[0], before_ts, REMOVED_AT_ONCE),
    )
    return [position for (position,) in rows]


def _remove(txn: WriteTransaction, old: Sequence[_OldRows]) -> None:
    for each in old:
        txn.execute_many(
            "DELETE FROM event_push_actions WHERE user_id = ? AND room_nid = ? AND position = ?",
            [(*each.key, position) for position in each.positions],
        )
    txn.execute_many(
        "INSERT INTO event_push_action_floors (user_id, room_nid, position) VALUES (?, ?, ?)"
        " ON CONFLICT (user_id, room_nid) DO UPDATE SET position ="
        " CASE WHEN excluded.position > event_push_action_floors.position THEN excluded.position"
        " ELSE event_push_action_floors.position END",
        [(*each.key, each.positions[-1]) for each in old],
    )
