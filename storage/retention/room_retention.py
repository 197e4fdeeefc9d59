"""How long rooms want their messages to be kept: what their `m.room.retention` says, a number a
room.

A row stays when the room says nothing any more, so that other nodes hear of it.
"""

import msgspec

from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction


class RoomLifetime(msgspec.Struct, frozen=True):
    """What a room says."""

    room_nid: int
    max_lifetime: int | None
    """Milliseconds; None where it says nothing that counts."""
    position: int
    """When that was set."""


class RoomLifetimeStore:
    """The table `room_lifetimes`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_since(self, position: int) -> tuple[list[RoomLifetime], int]:
        """What was set after a position, and the position of the latest of it (or that one)."""

        def read(txn: Transaction) -> tuple[list[RoomLifetime], int]:
            sql = "SELECT room_nid, max_lifetime, position FROM room_lifetimes WHERE position > ? ORDER BY position"
            rows = [RoomLifetime(*row) for row in txn.query(sql, (position,))]
            return rows, rows[-1].position if rows else position

        return await self._database.read_quickly("get_room_lifetimes", read)

    async def get_rooms(self, after: int, limit: int) -> list[int]:
        """The numbers of rooms in their order, so many after one."""

        def read(txn: Transaction) -> list[int]:
            rows = txn.query(
                "SELECT room_nid FROM rooms WHERE room_nid > ? ORDER BY room_nid LIMIT ?",
                (after, limit),
            )
            return [nid for (nid,) in rows]

        return await self._database.read_quickly("get_rooms_in_order", read)


def set_lifetime(txn: WriteTransaction, room_nid: int, max_lifetime: int | None) -> None:
    """The room says so from now on."""
    position = txn.next_position()
    txn.execute(
        "INSERT INTO room_lifetimes (room_nid, max_lifetime, position) VALUES (?, ?, ?)"
        " ON CONFLICT (room_nid) DO UPDATE SET max_lifetime = excluded.max_lifetime, position = excluded.position",
        (room_nid, max_lifetime, position),
    )
    txn.announce(
        Change(position, Topic.LIFETIME, detail=RoomLifetime(room_nid, max_lifetime, position))
    )
