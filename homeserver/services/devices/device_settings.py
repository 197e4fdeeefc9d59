"""Account data that belongs to one device, and goes with it. Proposal: MSC3890."""

from collections.abc import Sequence
from typing import Final

from storage.account_data.account_data import AccountDataStore
from storage.engine.transaction import WriteTransaction

OF_DEVICES: Final = (
    "m.local_notification_settings.",
    "org.matrix.msc3890.local_notification_settings.",
)
"""What types begin with; the id of the device follows."""


class DeviceSettings:
    """Removes what clients have set for devices that are no more."""

    def __init__(self, store: AccountDataStore) -> None:
        self._store = store

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Remove what is kept for devices; the others hear of it."""
        for device_id in device_ids:
            for prefix in OF_DEVICES:
                self._store.remove_entry(txn, user_id, None, prefix + device_id)
