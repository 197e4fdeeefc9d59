"""Account data of a single device, which is deleted with it. Proposal: MSC3890."""

from collections.abc import Sequence
from typing import Final

from storage.account_data.account_data import AccountDataStore
from storage.engine.transaction import WriteTransaction

TYPE_PREFIXES: Final = (
    "m.local_notification_settings.",
    "org.matrix.msc3890.local_notification_settings.",
)
"""Prefixes of the types; the device ID follows."""


class DeviceSettings:
    """Removes account data of deleted devices."""

    def __init__(self, store: AccountDataStore) -> None:
        self._store = store

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Remove the account data of devices, and announce it to the user's other devices."""
        for device_id in device_ids:
            for prefix in TYPE_PREFIXES:
                self._store.remove_entry(txn, user_id, None, prefix + device_id)
