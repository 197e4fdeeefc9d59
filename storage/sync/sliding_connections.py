"""The states of sliding sync connections, stored so that a connection survives a restart.

A state records what the client was sent. Each state has a number, which the client gets in `pos`
and sends with its next request. A connection may have several stored states, because the server
does not know which responses the client has received.

Laws:
- A stored state never changes, and its number is not reused. So a state that was read remains
  valid.
- A client has certainly received the state whose number it sends. The write of the following state
  deletes those that are older than the received one. It keeps the newer ones, because the client
  may use any of them. For example, a client sends state 5, loses the network, and repeats the
  request. The response to the repeated request has state 6. The first request is answered late,
  with state 7. This does not delete state 6, which the client uses.
- The number of states of a connection is limited. The oldest are deleted, but never the one that
  the client sent last.
- The number of connections of a device is limited, and unused ones are deleted after some time.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MAX_DEVICE_CONNECTIONS: Final = 16
"""The most connections of a device. The least recently used are deleted first."""
MAX_CONNECTION_STATES: Final = 8
"""The most states of a connection. Usually there are two: the one that the client sent and the one
in the response. There are more if the client repeats requests with the same state. The oldest are
deleted first."""


class SlidingConnectionKey(msgspec.Struct, frozen=True, gc=False):
    """Identifies a connection."""

    user_id: str
    device_id: str
    conn_id: str


class SlidingConnectionState(msgspec.Struct, frozen=True, gc=False):
    """A stored state."""

    used_ts: int
    state: bytes


class SlidingConnectionStore:
    """Stores the states of connections."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_state(
        self, key: SlidingConnectionKey, state_nid: int
    ) -> SlidingConnectionState | None:
        """Return the state of a connection with this number, or None."""
        return await self._database.read_quickly("get_sliding_state", _select, key, state_nid)

    async def add_state(
        self, key: SlidingConnectionKey, former: int | None, state: bytes, now_ms: int
    ) -> int:
        """Store a state that follows the `former` one, which the client sent. Delete older ones.
        Return the number of the new state.

        `former` None starts a new connection. Then excess connections of the device are deleted.
        """
        return await self._database.write("add_sliding_state", _insert, key, former, state, now_ms)

    async def remove_unused(self, unused_since: int, limit: int) -> int:
        """Delete up to `limit` states of connections that were not used since this time (in
        milliseconds). Return how many."""
        return await self._database.write(
            "remove_unused_sliding_states", _delete_unused, unused_since, limit
        )

    async def set_used(self, key: SlidingConnectionKey, now_ms: int) -> None:
        """Record that the connection was used."""
        await self._database.write("set_sliding_used", _touch, key, now_ms)

    async def remove_connection(self, key: SlidingConnectionKey) -> None:
        """Delete a connection."""
        await self._database.write("remove_sliding_connection", _delete, key)

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Delete the connections of deleted devices."""
        txn.execute_many(
            "DELETE FROM sliding_sync_connections WHERE user_id = ? AND device_id = ?",
            [(user_id, device_id) for device_id in device_ids],
        )


def _args(key: SlidingConnectionKey) -> tuple[str, str, str]:
    return key.user_id, key.device_id, key.conn_id


def _select(
    txn: Transaction, key: SlidingConnectionKey, state_nid: int
) -> SlidingConnectionState | None:
    row = txn.query_one(
        "SELECT last_used_ts, state FROM sliding_sync_connections"
        " WHERE user_id = ? AND device_id = ? AND conn_id = ? AND state_nid = ?",
        (*_args(key), state_nid),
    )
    return None if row is None else SlidingConnectionState(row[0], bytes(row[1]))


def _insert(
    txn: WriteTransaction, key: SlidingConnectionKey, former: int | None, state: bytes, now_ms: int
) -> int:
    state_nid = txn.allocate("sliding_sync_state")
    known = 0 if former is None else former
    others = MAX_CONNECTION_STATES - 2  # in addition to the former and the new one
    txn.execute_later(
        "DELETE FROM sliding_sync_connections WHERE user_id = ? AND device_id = ? AND conn_id = ?"
        " AND (state_nid < ?"
        " OR state_nid <> ? AND state_nid <= (SELECT s.state_nid FROM sliding_sync_connections AS s"
        " WHERE s.user_id = ?"
        " AND s.device_id = ? AND s.conn_id = ? AND s.state_nid <> ?"
        " ORDER BY s.state_nid DESC LIMIT 1 OFFSET ?))",
        (*_args(key), known, known, *_args(key), known, others),
    )
    txn.execute_later(
        "INSERT INTO sliding_sync_connections (user_id, device_id, conn_id, state_nid,"
        " last_used_ts, state)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (*_args(key), state_nid, now_ms, state),
    )
    if former is None:
        other_ids = txn.query(
            "SELECT conn_id FROM sliding_sync_connections"
            " WHERE user_id = ? AND device_id = ? AND conn_id <> ?"
            " GROUP BY conn_id ORDER BY max(last_used_ts) DESC, conn_id",
            _args(key),
        )
        for (conn_id,) in other_ids[MAX_DEVICE_CONNECTIONS - 1 :]:
            _delete(txn, SlidingConnectionKey(key.user_id, key.device_id, conn_id))
    return state_nid


def _delete_unused(txn: WriteTransaction, unused_since: int, limit: int) -> int:
    unused = txn.query(
        "SELECT user_id, device_id, conn_id, state_nid FROM sliding_sync_connections"
        " WHERE last_used_ts < ? LIMIT ?",
        (unused_since, limit),
    )
    txn.execute_many(
        "DELETE FROM sliding_sync_connections WHERE user_id = ? AND device_id = ? AND conn_id = ?"
        " AND state_nid = ?",
        unused,
    )
    return len(unused)


def _touch(txn: WriteTransaction, key: SlidingConnectionKey, now_ms: int) -> None:
    txn.execute(
        "UPDATE sliding_sync_connections SET last_used_ts = ?"
        " WHERE user_id = ? AND device_id = ? AND conn_id = ?",
        (now_ms, *_args(key)),
    )


def _delete(txn: WriteTransaction, key: SlidingConnectionKey) -> None:
    txn.execute(
        "DELETE FROM sliding_sync_connections WHERE user_id = ? AND device_id = ? AND conn_id = ?",
        _args(key),
    )
