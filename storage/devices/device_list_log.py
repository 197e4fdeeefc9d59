"""The changes of local users' devices that are sent to other servers.

Each change of a device has a stream ID, and names the stream ID of the user's previous device
change. Only the latest changes of each user are stored. A server that missed earlier ones notices
the gap, and fetches the complete list.

spec: server-server-api#device-management
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MAX_LOGGED: Final = 100
"""The most changes stored for a user."""
_LATEST: Final = (
    "SELECT stream_id FROM device_list_log WHERE user_id = ? AND device_id IS NOT NULL"
    " ORDER BY stream_id DESC LIMIT 1"
)


class DeviceListChange(msgspec.Struct, frozen=True):
    """One change. `device_id` is None for cross-signing keys, whose changes are not part of the
    chain."""

    user_id: str
    stream_id: int
    prev_id: int
    device_id: str | None


class DeviceListLog:
    """Reads the log of changes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_changed_users(self, after: int, upto: int) -> Mapping[str, int]:
        """Return the users with changes in this range of positions, with the first change of
        each."""
        return await self._database.read_quickly(
            "get_changed_device_users", _select_users, after, upto
        )

    async def get_stream_id(self, user_id: str) -> int:
        """Return the stream ID of the user's latest device change; 0 if none."""
        return await self._database.read_quickly("get_device_stream_id", select_stream_id, user_id)

    async def get_changes(self, user_id: str, since: int) -> Sequence[DeviceListChange]:
        """Return the stored changes of a user from a stream ID on, in order. If there are none,
        return the latest device change."""
        return await self._database.read_quickly("get_device_changes", _select, user_id, since)


def log_changes(
    txn: WriteTransaction, user_id: str, device_ids: Sequence[str | None], first: int
) -> None:
    """Record changes of one user, numbered from `first` on."""
    for stream_id, device_id in enumerate(device_ids, first):
        txn.execute_later(
            "INSERT INTO device_list_log (user_id, stream_id, prev_id, device_id)"
            f" SELECT ?, ?, coalesce(({_LATEST}), 0), ?",
            (user_id, stream_id, user_id, device_id),
        )
    # keep the latest device change: its ID is the stream ID of the list
    txn.execute_later(
        "DELETE FROM device_list_log WHERE user_id = ? AND stream_id <="
        " (SELECT stream_id FROM device_list_log WHERE user_id = ?"
        " ORDER BY stream_id DESC LIMIT 1 OFFSET ?)"
        f" AND stream_id <> coalesce(({_LATEST}), 0)",
        (user_id, user_id, MAX_LOGGED, user_id),
    )


def select_stream_id(txn: Transaction, user_id: str) -> int:
    """Return the stream ID of the user's latest device change; 0 if none."""
    row = txn.query_one(_LATEST, (user_id,))
    return 0 if row is None else int(row[0])


def _select_users(txn: Transaction, after: int, upto: int) -> dict[str, int]:
    rows: Iterable[tuple[str, int]] = txn.query(
        "SELECT user_id, min(stream_id) FROM device_list_log"
        " WHERE stream_id > ? AND stream_id <= ? GROUP BY user_id",
        (after, upto),
    )
    return dict(rows)


def _select(txn: Transaction, user_id: str, since: int) -> list[DeviceListChange]:
    rows = txn.query(
        "SELECT user_id, stream_id, prev_id, device_id FROM device_list_log"
        " WHERE user_id = ? AND stream_id >= ?"
        " ORDER BY stream_id",
        (user_id, since),
    )
    if not rows:
        latest = (
            "SELECT user_id, stream_id, prev_id, device_id FROM device_list_log"
            " WHERE user_id = ? AND device_id IS NOT NULL ORDER BY stream_id DESC LIMIT 1"
        )
        rows = txn.query(latest, (user_id,))
    return [DeviceListChange(*row) for row in rows]
