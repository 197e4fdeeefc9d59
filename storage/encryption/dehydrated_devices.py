"""Dehydrated devices: one a user, which nobody is signed in on, and what its user's clients need to
wake it.

The device itself, its keys and what is sent to it are kept where those of every device are.

spec: MSC3814
"""

from collections.abc import Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class DehydratedDevice(msgspec.Struct, frozen=True):
    """`device_data` is JSON, as the client gave it."""

    user_id: str
    device_id: str
    device_data: bytes


class DehydratedDeviceStore:
    """The table of dehydrated devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_device(self, user_id: str) -> DehydratedDevice | None:
        """The user's, if there is one."""
        return await self._database.read_quickly(
            "get_dehydrated_device", select_dehydrated, user_id
        )

    def set_device(self, txn: WriteTransaction, device: DehydratedDevice) -> None:
        """Keep this one, in the place of the one before."""
        txn.execute(
            "INSERT INTO dehydrated_devices (user_id, device_id, device_data) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id) DO UPDATE SET device_id = excluded.device_id,"
            " device_data = excluded.device_data",
            (device.user_id, device.device_id, device.device_data),
        )

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Forget it where it is among devices that go."""
        txn.execute_many(
            "DELETE FROM dehydrated_devices WHERE user_id = ? AND device_id = ?",
            [(user_id, device_id) for device_id in device_ids],
        )


def select_dehydrated(txn: Transaction, user_id: str) -> DehydratedDevice | None:
    """The form of `get_device` for use inside a transaction."""
    row = txn.query_one(
        "SELECT user_id, device_id, device_data FROM dehydrated_devices WHERE user_id = ?",
        (user_id,),
    )
    return None if row is None else DehydratedDevice(*row)
