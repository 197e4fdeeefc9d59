"""The remote servers in each room, each with the number of its joined users.

The numbers are updated when users join or leave. So a reader finds the servers of a room without a
scan of its members.

While a room's state is partial (see `partial_rooms.py`), the servers that `send_join` listed are in
the room too.
"""

from collections.abc import Collection, Iterable, Mapping

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class RoomServer(msgspec.Struct, frozen=True):
    """A server in a room."""

    server: str
    joined_position: int
    """The position at which its first user joined."""


class RoomServerStore:
    """Reads the table `room_servers`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_servers(self, room_nids: Iterable[int]) -> Mapping[int, list[RoomServer]]:
        """Return the remote servers in each room in one query; a room without any is missing."""
        return await self._database.read_quickly("get_room_servers", _select, list(room_nids))

    async def has_any(self) -> bool:
        """Whether another server is in any room. One query."""
        return await self._database.read_quickly("has_room_servers", _has_any)

    async def get_sharing(self, servers: Iterable[str]) -> Collection[str]:
        """Return those of the servers that share a room with us, in one query."""
        return await self._database.read_quickly(
            "get_sharing_servers", _select_sharing, list(servers)
        )


def count_servers(
    txn: WriteTransaction, room_nid: int, changes: Mapping[str, int], positions: Mapping[str, int]
) -> None:
    """Add to the counts of joined users by server. `positions`: where each new server joins."""
    for server, change in changes.items():
        if change > 0:
            txn.execute(
                "INSERT INTO room_servers (room_nid, server, joined_count, joined_position)"
                " VALUES (?, ?, ?, ?)"
                " ON CONFLICT (room_nid, server) DO UPDATE SET"
                " joined_count = room_servers.joined_count + excluded.joined_count",
                (room_nid, server, change, positions[server]),
            )
        elif change < 0:
            txn.execute(
                "UPDATE room_servers SET joined_count = joined_count + ?"
                " WHERE room_nid = ? AND server = ?",
                (change, room_nid, server),
            )
            txn.execute(
                "DELETE FROM room_servers WHERE room_nid = ? AND server = ? AND joined_count <= 0",
                (room_nid, server),
            )


def _select(txn: Transaction, room_nids: list[int]) -> dict[int, list[RoomServer]]:
    rows = txn.query_in(
        "SELECT room_nid, server, MIN(joined_position)"
        " FROM (SELECT room_nid, server, joined_position FROM room_servers"
        " UNION ALL SELECT s.room_nid, s.server, r.position FROM partial_servers AS s"
        " JOIN partial_rooms AS r ON r.room_nid = s.room_nid) AS together"
        " WHERE room_nid IN {keys} GROUP BY room_nid, server ORDER BY room_nid, server",
        room_nids,
    )
    found: dict[int, list[RoomServer]] = {}
    for room_nid, server, since in rows:
        found.setdefault(room_nid, []).append(RoomServer(server, since))
    return found


def _has_any(txn: Transaction) -> bool:
    sql = "SELECT EXISTS (SELECT 1 FROM room_servers) OR EXISTS (SELECT 1 FROM partial_servers)"
    return txn.query(sql)[0][0] in (1, True)


def _select_sharing(txn: Transaction, servers: list[str]) -> set[str]:
    found = set()
    for table in ("room_servers", "partial_servers"):
        found |= {
            server
            for (server,) in txn.query_in(
                f"SELECT DISTINCT server FROM {table} WHERE server IN {{keys}}", servers
            )
        }
    return found
