"""Forgets servers that nobody has to tell anything: what waits too long for one that cannot be
reached, and its row.

What is forgotten, and after how long, whoever calls says. A server *shares a room* while one of its
users is in a room of ours, or was said to be (`partial_rooms.py`).
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
"""Messages for such a server are no longer kept. Parameters: `dead_since`, `strangers_since` of
`Ages`."""
_FORGETTABLE: Final = f"d.tried_ts < ? AND NOT {_SHARES} AND NOT {_HAS_MESSAGES} AND (d.failing_since_ts < ? OR NOT {_IS_BEHIND})"
"""Nothing is known of such a server that is worth a row. Parameters: `tried_before`, `dead_since`
of `Ages`."""


class Ages(msgspec.Struct, frozen=True):
    """Times in milliseconds since 1970."""

    dead_since: int
    """Who cannot be reached since before then gets no messages to devices any more; if it shares no
    room, nothing at all."""
    strangers_since: int
    """Who cannot be reached since before then and shares no room gets no messages to devices any
    more."""
    tried_before: int
    """Of whom was tried last before then, shares no room and has nothing waiting, nothing is
    kept."""


class ForgottenDestinationStore:
    """Removes rows of `destinations` and of what waits for them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remove_expired(self, ages: Ages, limit: int) -> int:
        """Remove some of the messages to devices that are no longer kept; how many."""
        expired = await self._database.read(
            "get_expired_destinations", _select_expired, ages, limit
        )
        return (
            await self._database.write("remove_expired_to_device", _remove, ages, expired, limit)
            if expired
            else 0
        )

    async def forget(self, ages: Ages, limit: int) -> list[str]:
        """Forget some of those of whom nothing is worth keeping; who they were."""
        found = await self._database.read(
            "get_forgettable_destinations", _select_forgettable, ages, limit
        )
        return (
            await self._database.write("forget_destinations", _forget, ages, found) if found else []
        )


def _select_expired(txn: Transaction, ages: Ages, limit: int) -> list[str]:
    sql = f"SELECT d.server FROM destinations AS d WHERE {_EXPIRED} AND {_HAS_MESSAGES} LIMIT ?"
    return [server for (server,) in txn.query(sql, (ages.dead_since, ages.strangers_since, limit))]


def _remove(txn: WriteTransaction, ages: Ages, servers: list[str], limit: int) -> int:
    """Those that could be reached meanwhile are left alone."""
    left = limit
    sql = f"SELECT d.server FROM destinations AS d WHERE {_EXPIRED} AND d.server IN {{keys}}"
    still = txn.query_in(sql, servers, (ages.dead_since, ages.strangers_since))
    for (server,) in still:
        rows = txn.query(
            "SELECT position FROM outgoing_to_device WHERE server = ? ORDER BY position LIMIT ?",
            (server, left),
        )
        if rows:
            txn.execute(
                "DELETE FROM outgoing_to_device WHERE server = ? AND position <= ?",
                (server, rows[-1][0]),
            )
        left -= len(rows)
        if not left:
            break
    return limit - left


def _select_forgettable(txn: Transaction, ages: Ages, limit: int) -> list[str]:
    sql = f"SELECT d.server FROM destinations AS d WHERE {_FORGETTABLE} LIMIT ?"
    return [server for (server,) in txn.query(sql, (ages.tried_before, ages.dead_since, limit))]


def _forget(txn: WriteTransaction, ages: Ages, servers: list[str]) -> list[str]:
    """Those for which something came meanwhile are left alone."""
    sql = f"SELECT d.server FROM destinations AS d WHERE {_FORGETTABLE} AND d.server IN {{keys}}"
    gone = [
        (server,) for (server,) in txn.query_in(sql, servers, (ages.tried_before, ages.dead_since))
    ]
    for table in ("destination_rooms", "destination_users", "destinations"):
        txn.execute_many(f"DELETE FROM {table} WHERE server = ?", gone)
    return [server for (server,) in gone]
