"""Messages to devices: kept in the order of their positions until the device comes back with a token of after them.

For a device that does not come back, so many are kept; then the oldest go. To refuse new ones instead would punish the
senders, whose request is for other devices as well, and a device that comes back after so long needs the newest keys most.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from storage.database import Database
from storage.streams import Change, Topic
from storage.transaction import Transaction, WriteTransaction

MOST_WAITING: Final = 100_000
LOOK_EVERY: Final = 256


class DeviceMessage(msgspec.Struct, frozen=True, gc=False):
    """A message that waits for a device."""

    position: int
    content: bytes
    """The event as the device gets it."""


class ToDeviceStore:
    """The table of messages to devices."""

    def __init__(self, database: Database, *, most_waiting: int = MOST_WAITING) -> None:
        """`most_waiting`: for a device, give or take a few hundred."""
        self._database = database
        self._most_waiting = most_waiting

    async def get_messages(
        self, user_id: str, device_id: str, after: int, upto: int, limit: int | None
    ) -> Sequence[DeviceMessage]:
        """The oldest messages with after < position ≤ up to; `limit` None: all of them."""
        return await self._database.read_quickly("get_to_device", _select, user_id, device_id, after, upto, limit)

    async def remove_messages(self, user_id: str, device_id: str, upto: int) -> None:
        """The device has all up to that position."""
        await self._database.write("remove_to_device", _delete, user_id, device_id, upto)

    def add_messages(self, txn: WriteTransaction, messages: Mapping[tuple[str, str], Sequence[bytes]]) -> None:
        """Add messages by (user, device), each at a position of its own."""
        rows = []
        looked_at = []  # to count what waits for every device at every message would cost too much
        position = txn.next_position(max(1, sum(len(contents) for contents in messages.values())))
        for (user_id, device_id), contents in messages.items():
            for content in contents:
                rows.append((user_id, device_id, position, content))
                txn.announce(Change(position, Topic.TO_DEVICE, user_id=user_id))
                if position % LOOK_EVERY == 0:
                    looked_at.append((user_id, device_id))
                position += 1
        txn.execute_many(
            "INSERT INTO to_device_messages (user_id, device_id, position, content) VALUES (?, ?, ?, ?)", rows
        )
        for user_id, device_id in looked_at:
            newest_to_go = txn.query_one(
                "SELECT position FROM to_device_messages WHERE user_id = ? AND device_id = ?"
                " ORDER BY position DESC LIMIT 1 OFFSET ?",
                (user_id, device_id, self._most_waiting),
            )
            if newest_to_go is not None:
                _delete(txn, user_id, device_id, newest_to_go[0])

    def remove_devices(self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]) -> None:
        """Remove what waits for devices that go."""
        txn.execute_many(
            "DELETE FROM to_device_messages WHERE user_id = ? AND device_id = ?",
            [(user_id, device_id) for device_id in device_ids],
        )


def _select(
    txn: Transaction, user_id: str, device_id: str, after: int, upto: int, limit: int | None
) -> list[DeviceMessage]:
    sql = (
        "SELECT position, content FROM to_device_messages WHERE user_id = ? AND device_id = ? AND position > ?"
        " AND position <= ? ORDER BY position"
    )
    args = (user_id, device_id, after, upto)
    rows = txn.query(sql, args) if limit is None else txn.query(sql + " LIMIT ?", (*args, limit))
    return [DeviceMessage(*row) for row in rows]


def _delete(txn: WriteTransaction, user_id: str, device_id: str, upto: int) -> None:
    txn.execute(
        "DELETE FROM to_device_messages WHERE user_id = ? AND device_id = ? AND position <= ?",
        (user_id, device_id, upto),
    )
