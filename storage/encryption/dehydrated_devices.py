"""Dehydrated devices: at most one for each user, with the data that the user's clients need to
rehydrate it.

Nobody is signed in on a dehydrated device, so it has no access token. The device itself, its keys
and its messages are stored as for any device.

spec: MSC3814
"""

from collections.abc import Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class DehydratedDevice(msgspec.Struct, frozen=True):
    """A dehydrated device. `device_data` is JSON from the client."""

    user_id: str
    device_id: str
    device_data: bytes


class DehydratedDeviceStore:
    """Stores dehydrated devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_device(self, user_id: str) -> DehydratedDevice | None:
        """Return the user's dehydrated device, if there is one."""
        return await self._database.read_quickly(
            "get_dehydrated_device", select_dehydrated, user_id
        )

    def set_device(self, txn: WriteTransaction, device: DehydratedDevice) -> None:
        """Store a dehydrated device. Replaces the previous one."""
        txn.execute(
            "INSERT INTO dehydrated_devices (user_id, device_id, device_data) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id) DO UPDATE SET device_id = excluded.device_id,"
            " device_data = excluded.device_data",
            (device.user_id, device.device_id, device.device_data),
        )

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Delete the dehydrated device if it is among these deleted devices."""
        txn.execute_many(
            "DELETE FROM dehydrated_devices WHERE user_id = ? AND device_id = ?",
            [(user_id, device_id) for device_id in device_ids],
        )


def select_dehydrated(txn: Transaction, user_id: str) -> DehydratedDevice | None:
    """Do `get_device` in a transaction."""
    row = txn.query_one(
        "SELECT user_id, device_id, device_data FROM dehydrated_devices WHERE user_id = ?",
        (user_id,),
    )
    return None if row is None else DehydratedDevice(*row)
