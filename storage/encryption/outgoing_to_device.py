"""The queue of to-device messages to remote servers, and the IDs of messages received from them.

The server discards a received message if its ID is stored already. The queue for a server is
bounded: if the server is unreachable for long, the oldest messages are dropped. The number of IDs
stored for a server is bounded too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from storage.encryption.to_device import DeviceMessage
from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction

MAX_QUEUED: Final = 100_000
MAX_RECEIVED: Final = 100_000
TRIM_INTERVAL: Final = 256
"""The number of added messages between two checks of the limits."""


class OutgoingToDeviceStore:
    """Stores to-device messages to remote servers, and the IDs of received ones."""

    def __init__(
        self, *, database: Database, max_queued: int = MAX_QUEUED, max_received: int = MAX_RECEIVED
    ) -> None:
        """`max_queued`, `max_received`: the limits for one server, give or take a few hundred."""
        self._database = database
        self._max_queued = max_queued
        self._max_received = max_received
        self._recorded = 0

    async def get_messages(self, server: str, limit: int) -> Sequence[DeviceMessage]:
        """Return the oldest messages queued for a server."""
        return await self._database.read_quickly("get_outgoing_to_device", _select, server, limit)

    async def get_servers(self, after: int, upto: int) -> set[str]:
        """Return the servers for which messages were queued in this range of positions."""
        return await self._database.read_quickly(
            "get_to_device_servers", _select_servers, after, upto
        )

    async def count_messages(self) -> Mapping[str, int]:
        """Return the number of queued messages for each server. Reads all of them."""
        return await self._database.read("count_outgoing_to_device", _count)

    def add_messages(self, txn: WriteTransaction, messages: Mapping[str, bytes]) -> None:
        """Add a message for each of these servers."""
        first = txn.next_position(len(messages))
        rows = [
            (server, first + index, content)
            for index, (server, content) in enumerate(messages.items())
        ]
        txn.execute_many(
            "INSERT INTO outgoing_to_device (server, position, content) VALUES (?, ?, ?)", rows
        )
        txn.announce(Change(first + len(rows) - 1, Topic.OUTGOING_TO_DEVICE))
        for server, position, _ in rows:
            if position % TRIM_INTERVAL == 0:
                oldest_excess = txn.query_one(
                    "SELECT position FROM outgoing_to_device WHERE server = ?"
                    " ORDER BY position DESC LIMIT 1 OFFSET ?",
                    (server, self._max_queued),
                )
                if oldest_excess is not None:
                    self.remove_messages(txn, server, oldest_excess[0])

    def remove_messages(self, txn: WriteTransaction, server: str, upto: int) -> None:
        """Delete messages up to a position: the server has received them."""
        txn.execute(
            "DELETE FROM outgoing_to_device WHERE server = ? AND position <= ?", (server, upto)
        )

    def add_received(
        self, txn: WriteTransaction, origin: str, sender: str, message_id: str, now_ms: int
    ) -> bool:
        """Record a message from another server. Return False if it was recorded before."""
        added = txn.execute(
            "INSERT INTO received_to_device (sender, message_id, received_ts, origin)"
            " VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            (sender, message_id, now_ms, origin),
        )
        self._recorded += added
        if added and self._recorded % TRIM_INTERVAL == 0:
            too_old = txn.query_one(
                "SELECT received_ts FROM received_to_device WHERE origin = ?"
                " ORDER BY received_ts DESC LIMIT 1 OFFSET ?",
                (origin, self._max_received),
            )
            if too_old is not None:
                txn.execute(
                    "DELETE FROM received_to_device WHERE origin = ? AND received_ts <= ?",
                    (origin, too_old[0]),
                )
        return bool(added)

    async def delete_received(self, before_ts: int, limit: int) -> int:
        """Delete the oldest records of messages received before this time. Return how many."""
        return await self._database.write(
            "delete_received_to_device", _delete_received, before_ts, limit
        )


def _select(txn: Transaction, server: str, limit: int) -> list[DeviceMessage]:
    sql = (
        "SELECT position, content FROM outgoing_to_device WHERE server = ?"
        " ORDER BY position LIMIT ?"
    )
    return [DeviceMessage(*row) for row in txn.query(sql, (server, limit))]


def _select_servers(txn: Transaction, after: int, upto: int) -> set[str]:
    sql = "SELECT DISTINCT server FROM outgoing_to_device WHERE position > ? AND position <= ?"
    return {server for (server,) in txn.query(sql, (after, upto))}


def _count(txn: Transaction) -> dict[str, int]:
    rows = txn.query("SELECT server, count(*) FROM outgoing_to_device GROUP BY server")
    return {server: count for server, count in rows}


def _delete_received(txn: WriteTransaction, before_ts: int, limit: int) -> int:
    rows: Iterable[tuple[str, str]] = txn.query(
        "SELECT sender, message_id FROM received_to_device WHERE received_ts < ?"
        " ORDER BY received_ts LIMIT ?",
        (before_ts, limit),
    )
    deleted = list(rows)
    txn.execute_many("DELETE FROM received_to_device WHERE sender = ? AND message_id = ?", deleted)
    return len(deleted)
