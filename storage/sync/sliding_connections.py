"""Connections of sliding sync: what clients were sent, so that they go on after a restart of the
server.

Laws:
- A state never changes under its number; numbers are not used twice. So what was read once stays
  true.
- A client has a state for sure once it comes back with it: then the older ones go, with the next
  one that is written. Until then every answer's state stays that it may have got: of a connection
  that broke the server may not have heard, and what still waited there is answered after the retry
  was. So a late answer takes nothing from who has gone on.
- The states of a connection are bounded.
- What a device may have is bounded; what nobody has used for long goes.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MOST_OF_A_DEVICE: Final = 16
"""Connections of one device; the longest unused go first."""
MOST_OF_A_CONNECTION: Final = 8
"""States of one connection: mostly two, the one that the client came with and the one that it was
given; more where it asked from the same one again. The oldest go first."""


class ConnectionKey(msgspec.Struct, frozen=True, gc=False):
    """Which connection."""

    user_id: str
    device_id: str
    conn_id: str


class ConnectionRow(msgspec.Struct, frozen=True, gc=False):
    """A stored state."""

    used_ts: int
    state: bytes


class SlidingConnectionStore:
    """The table `sliding_connections`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_state(self, key: ConnectionKey, state_nid: int) -> ConnectionRow | None:
        """The state of a connection with that number, or None."""
        return await self._database.read_quickly("get_sliding_state", _select, key, state_nid)

    async def add_state(
        self, key: ConnectionKey, former: int | None, state: bytes, now_ms: int
    ) -> int:
        """Keep a state that follows the `former` one, with which the client came: those before it
        go. The number of the new one.

        `former` None begins the connection afresh; then those of the device that are too many go.
        """
        return await self._database.write("add_sliding_state", _insert, key, former, state, now_ms)

    async def remove_unused(self, unused_since: int, limit: int) -> int:
        """Forget up to `limit` states of connections that were not used since then (in
        milliseconds); how many."""
        return await self._database.write(
            "remove_unused_sliding_states", _delete_unused, unused_since, limit
        )

    async def set_used(self, key: ConnectionKey, now_ms: int) -> None:
        """The connection is in use."""
        await self._database.write("set_sliding_used", _touch, key, now_ms)

    async def remove_connection(self, key: ConnectionKey) -> None:
        """Forget a connection."""
        await self._database.write("remove_sliding_connection", _delete, key)

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Forget the connections of devices that go."""
        txn.execute_many(
            "DELETE FROM sliding_connections WHERE user_id = ? AND device_id = ?",
            [(user_id, device_id) for device_id in device_ids],
        )


def _args(key: ConnectionKey) -> tuple[str, str, str]:
    return key.user_id, key.device_id, key.conn_id


def _select(txn: Transaction, key: ConnectionKey, state_nid: int) -> ConnectionRow | None:
    row = txn.query_one(
        "SELECT used_ts, state FROM sliding_connections"
        " WHERE user_id = ? AND device_id = ? AND conn_id = ? AND state_nid = ?",
        (*_args(key), state_nid),
    )
    return None if row is None else ConnectionRow(row[0], bytes(row[1]))


def _insert(
    txn: WriteTransaction, key: ConnectionKey, former: int | None, state: bytes, now_ms: int
) -> int:
    state_nid = txn.allocate("sliding_state")
    known = 0 if former is None else former
    others = MOST_OF_A_CONNECTION - 2  # beside the former and the new one
    txn.execute_later(
        "DELETE FROM sliding_connections WHERE user_id = ? AND device_id = ? AND conn_id = ?"
        " AND (state_nid < ?"
        " OR state_nid <> ? AND state_nid <= (SELECT s.state_nid FROM sliding_connections AS s"
        " WHERE s.user_id = ?"
        " AND s.device_id = ? AND s.conn_id = ? AND s.state_nid <> ?"
        " ORDER BY s.state_nid DESC LIMIT 1 OFFSET ?))",
        (*_args(key), known, known, *_args(key), known, others),
    )
    txn.execute_later(
        "INSERT INTO sliding_connections (user_id, device_id, conn_id, state_nid, used_ts, state)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (*_args(key), state_nid, now_ms, state),
    )
    if former is None:
        beside = txn.query(
            "SELECT conn_id FROM sliding_connections"
            " WHERE user_id = ? AND device_id = ? AND conn_id <> ?"
            " GROUP BY conn_id ORDER BY max(used_ts) DESC, conn_id",
            _args(key),
        )
        for (conn_id,) in beside[MOST_OF_A_DEVICE - 1 :]:
            _delete(txn, ConnectionKey(key.user_id, key.device_id, conn_id))
    return state_nid


def _delete_unused(txn: WriteTransaction, unused_since: int, limit: int) -> int:
    unused = txn.query(
        "SELECT user_id, device_id, conn_id, state_nid FROM sliding_connections"
        " WHERE used_ts < ? LIMIT ?",
        (unused_since, limit),
    )
    txn.execute_many(
        "DELETE FROM sliding_connections WHERE user_id = ? AND device_id = ? AND conn_id = ?"
        " AND state_nid = ?",
        unused,
    )
    return len(unused)


def _touch(txn: WriteTransaction, key: ConnectionKey, now_ms: int) -> None:
    txn.execute(
        "UPDATE sliding_connections SET used_ts = ?"
        " WHERE user_id = ? AND device_id = ? AND conn_id = ?",
        (now_ms, *_args(key)),
    )


def _delete(txn: WriteTransaction, key: ConnectionKey) -> None:
    txn.execute(
        "DELETE FROM sliding_connections WHERE user_id = ? AND device_id = ? AND conn_id = ?",
        _args(key),
    )
