"""Deletes to-device messages for servers that have been unreachable for too long.

Also deletes the rows of a server in `destinations`, `destination_rooms` and `destination_users`, if
the server shares no room with us, and nothing is to be sent to it or it has been unreachable for
too long.

The caller passes the time limits. A server *shares a room* with us in two cases: a user of the
server is joined to a room that our server stores, or the state of a room is partial and `send_join`
listed the server (`partial_rooms.py`).
"""

from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

_SHARES: Final = (
    "(EXISTS (SELECT 1 FROM room_servers AS r WHERE r.server = d.server)"
    " OR EXISTS (SELECT 1 FROM partial_servers AS p WHERE p.server = d.server))"
)
_HAS_MESSAGES: Final = "EXISTS (SELECT 1 FROM outgoing_to_device AS o WHERE o.server = d.server)"
_IS_BEHIND: Final = (
    "(EXISTS (SELECT 1 FROM destination_rooms AS m WHERE m.server = d.server)"
    " OR EXISTS (SELECT 1 FROM destination_users AS u WHERE u.server = d.server))"
)
_EXPIRED: Final = f"(d.failing_since_ts < ? OR (d.failing_since_ts < ? AND NOT {_SHARES}))"
"""SQL condition: messages for such a server are deleted. Parameters: `dead_since`,
`unshared_since` of `CleanupAges`."""
_UNNEEDED: Final = (
    f"d.last_attempt_ts < ? AND NOT {_SHARES} AND NOT {_HAS_MESSAGES} AND (d.failing_since_ts < ?"
    f" OR NOT {_IS_BEHIND})"
)
"""SQL condition: the row of such a server may be deleted. Parameters: `tried_before`, `dead_since`
of `CleanupAges`."""


class CleanupAges(msgspec.Struct, frozen=True):
    """Time limits in milliseconds since 1970."""

    dead_since: int
    """Servers unreachable since before then get no to-device messages any more; if they share no
    room, nothing at all."""
    unshared_since: int
    """Servers unreachable since before then that share no room get no to-device messages any
    more."""
    tried_before: int
    """The row of a server is deleted if it was last tried before then, shares no room and has
    nothing pending."""


class DestinationCleanupStore:
    """Deletes rows of `destinations`, and the data that is still to be sent to these servers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remove_expired(self, ages: CleanupAges, limit: int) -> int:
        """Delete some of the expired to-device messages. Return how many."""
        expired = await self._database.read(
            "get_expired_destinations", _select_expired, ages, limit
        )
        return (
            await self._database.write(
                "remove_expired_to_device", _remove_expired, ages, expired, limit
            )
            if expired
            else 0
        )

    async def remove_unneeded(self, ages: CleanupAges, limit: int) -> list[str]:
        """Delete some of the rows that are no longer needed. Return their servers."""
        found = await self._database.read(
            "get_unneeded_destinations", _select_unneeded, ages, limit
        )
        return (
            await self._database.write(
                "remove_unneeded_destinations", _remove_unneeded, ages, found
            )
            if found
            else []
        )


def _select_expired(txn: Transaction, ages: CleanupAges, limit: int) -> list[str]:
    sql = f"SELECT d.server FROM destinations AS d WHERE {_EXPIRED} AND {_HAS_MESSAGES} LIMIT ?"
    return [server for (server,) in txn.query(sql, (ages.dead_since, ages.unshared_since, limit))]


def _remove_expired(
    txn: WriteTransaction, ages: CleanupAges, servers: list[str], limit: int
) -> int:
    """Delete expired messages; servers that became reachable meanwhile are left alone."""
    remaining = limit
    sql = f"SELECT d.server FROM destinations AS d WHERE {_EXPIRED} AND d.server IN {{keys}}"
    expired = txn.query_in(sql, servers, (ages.dead_since, ages.unshared_since))
    for (server,) in expired:
        rows = txn.query(
            "SELECT position FROM outgoing_to_device WHERE server = ? ORDER BY position LIMIT ?",
            (server, remaining),
        )
        if rows:
            txn.execute(
                "DELETE FROM outgoing_to_device WHERE server = ? AND position <= ?",
                (server, rows[-1][0]),
            )
        remaining -= len(rows)
        if not remaining:
            break
    return limit - remaining


def _select_unneeded(txn: Transaction, ages: CleanupAges, limit: int) -> list[str]:
    sql = f"SELECT d.server FROM destinations AS d WHERE {_UNNEEDED} LIMIT ?"
    return [server for (server,) in txn.query(sql, (ages.tried_before, ages.dead_since, limit))]


def _remove_unneeded(txn: WriteTransaction, ages: CleanupAges, servers: list[str]) -> list[str]:
    """Delete destinations; those that became needed meanwhile are left alone."""
    sql = f"SELECT d.server FROM destinations AS d WHERE {_UNNEEDED} AND d.server IN {{keys}}"
    deleted = [
        (server,) for (server,) in txn.query_in(sql, servers, (ages.tried_before, ages.dead_since))
    ]
    for table in ("destination_rooms", "destination_users", "destinations"):
        txn.execute_many(f"DELETE FROM {table} WHERE server = ?", deleted)
    return [server for (server,) in deleted]
