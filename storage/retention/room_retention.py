"""Retention periods of rooms, from their `m.room.retention` events.

If a room no longer sets a period, its row remains without one, so that other nodes notice the
change.
"""

import msgspec

from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction


class RoomRetention(msgspec.Struct, frozen=True):
    """The retention period of a room."""

    room_nid: int
    max_lifetime: int | None
    """Milliseconds; None if the room sets no valid period."""
    position: int
    """The position at which it was set."""


class RoomRetentionStore:
    """Reads the table `room_retention`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_since(self, position: int) -> tuple[list[RoomRetention], int]:
        """Return the periods set after a position, and the position of the latest (or the given
        one)."""

        def read(txn: Transaction) -> tuple[list[RoomRetention], int]:
            sql = (
                "SELECT room_nid, max_lifetime, position FROM room_retention WHERE position > ?"
                " ORDER BY position"
            )
            rows = [RoomRetention(*row) for row in txn.query(sql, (position,))]
            return rows, rows[-1].position if rows else position

        return await self._database.read_quickly("get_room_retention_changes", read)

    async def get_rooms(self, after: int, limit: int) -> list[int]:
        """Return the numbers of `limit` rooms after one, in order."""

        def read(txn: Transaction) -> list[int]:
            rows = txn.query(
                "SELECT room_nid FROM rooms WHERE room_nid > ? ORDER BY room_nid LIMIT ?",
                (after, limit),
            )
            return [nid for (nid,) in rows]

        return await self._database.read_quickly("get_rooms_with_retention", read)


def set_room_retention(txn: WriteTransaction, room_nid: int, max_lifetime: int | None) -> None:
    """Set the retention period of a room."""
    position = txn.next_position()
    txn.execute(
        "INSERT INTO room_retention (room_nid, max_lifetime, position) VALUES (?, ?, ?)"
        " ON CONFLICT (room_nid) DO UPDATE"
        " SET max_lifetime = excluded.max_lifetime, position = excluded.position",
        (room_nid, max_lifetime, position),
    )
    txn.announce(
        Change(position, Topic.RETENTION, detail=RoomRetention(room_nid, max_lifetime, position))
    )
