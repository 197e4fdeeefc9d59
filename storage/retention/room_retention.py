"""How long rooms want their messages to be kept: what their `m.room.retention` says, a number a
room.

A row stays when the room says nothing any more, so that other nodes hear of it.
"""

from collections.abc import Mapping

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


class UnreadRoom(msgspec.Struct, frozen=True):
    """A room that said something before these rows were kept."""

    room_nid: int
    state_root: bytes | None
    """Of its present state."""


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

    async def get_unread(self) -> list[UnreadRoom]:
        """The rooms whose state is still to be read."""

        def read(txn: Transaction) -> list[UnreadRoom]:
            rows = txn.query(
                "SELECT l.room_nid, r.state_root FROM room_lifetimes AS l JOIN rooms AS r ON r.room_nid = l.room_nid"
                " WHERE l.position = 0"
            )
            return [UnreadRoom(nid, None if root is None else bytes(root)) for nid, root in rows]

        return await self._database.read_quickly("get_unread_lifetimes", read)

    async def set_read(self, found: Mapping[int, int | None]) -> None:
        """What these rooms say was read from their state. Where it was set meanwhile, that
        counts."""

        def write(txn: WriteTransaction) -> None:
            unread = txn.query_in(
                "SELECT room_nid FROM room_lifetimes WHERE position = 0 AND room_nid IN {keys}",
                found,
            )
            for (room_nid,) in unread:
                set_lifetime(txn, room_nid, found[room_nid])

        await self._database.write("set_read_lifetimes", write)

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
