"""Lists, creates, renames and removes the devices of a user. Removing a device also removes its
notification settings, which are entries of the account data (MSC3890).

spec: client-server-api#device-management
"""

from collections.abc import Sequence
from typing import Final

from federation.protocol.errors import InvalidParam, NotFound
from federation.protocol.ids import DeviceID, UserID
from homeserver.api.requester import Requester
from homeserver.services.login.confirmation import AccountConfirmation
from homeserver.services.login.credential_epoch import check_epoch
from homeserver.services.login.last_seen import LastSeen
from homeserver.services.login.sessions import Sessions
from homeserver.services.login.uia import AuthData
from storage.account_data.account_data import AccountDataStore
from storage.devices.devices import DeviceRow, DeviceStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction

MAX_DEVICE_NAME: Final = 100
"""Characters."""
SETTING_PREFIXES: Final = (
    "m.local_notification_settings.",
    "org.matrix.msc3890.local_notification_settings.",
)
"""Prefixes of the types of account data of one device; the device ID follows."""


def check_device_name(name: str | None) -> str | None:
    """Check a name and cut it to `MAX_DEVICE_NAME`. Raises `InvalidParam`."""
    if name is not None and "\0" in name:
        raise InvalidParam("A device name may not contain NUL")
    return None if name is None else name[:MAX_DEVICE_NAME]


class Devices:
    """Lists, renames and removes devices."""

    def __init__(
        self,
        *,
        database: Database,
        devices: DeviceStore,
        sessions: Sessions,
        confirmation: AccountConfirmation,
        last_seen: LastSeen,
    ) -> None:
        self._database = database
        self._devices = devices
        self._sessions = sessions
        self._confirmation = confirmation
        self._last_seen = last_seen

    async def get_devices(self, user_id: UserID) -> Sequence[DeviceRow]:
        """Return all devices of a user, with the current time and IP address of their last use.
        Users need these to recognise a device that has just signed in."""
        await self._last_seen.flush()
        return (await self._devices.get_devices([user_id])).get(user_id, [])

    async def get_device(self, user_id: UserID, device_id: DeviceID) -> DeviceRow:
        """Return one device like `get_devices`. Raises `NotFound`."""
        await self._last_seen.flush()
        return await self._get_device(user_id, device_id)

    async def do_create(self, caller: Requester, device_id: DeviceID, name: str | None) -> bool:
        """Create a device without a session for a user of an application service. Return False if
        the caller is not an application service, or the device exists. Raises `InvalidParam`,
        `Forbidden`. spec: application-service-api#creating-devices"""
        if caller.appservice_id is None:
            return False
        return await self._sessions.do_add_device(
            caller.user_id, device_id, check_device_name(name)
        )

    async def do_rename(self, user_id: UserID, device_id: DeviceID, name: str | None) -> None:
        """Rename a device; None keeps the name. Raises `NotFound`, `InvalidParam`."""
        device = await self._get_device(user_id, device_id)
        checked = check_device_name(name)
        if checked is None or checked == device.display_name:
            return  # an unchanged name must not be announced to all who share rooms

        def write(txn: WriteTransaction) -> bool:
            return self._devices.set_display_name(txn, user_id, device_id, checked)

        if not await self._database.write("rename_device", write):
            raise NotFound("You have no such device")

    async def do_remove(
        self, caller: Requester, device_ids: Sequence[DeviceID], auth: AuthData | None, address: str
    ) -> None:
        """Remove devices with their sessions, after confirmation (application services need none).
        Unknown devices are ignored: a repeated request may have removed them before. Raises
        `AuthenticationRequired`, `Forbidden`."""
        epoch = None
        if caller.appservice_id is None:
            operation = "DELETE devices " + " ".join(sorted(set(device_ids)))
            epoch = await self._confirmation.check_confirmed(
                caller, operation, auth, address, accepts_earlier=True
            )

        def write(txn: WriteTransaction) -> None:
            if epoch is not None:
                check_epoch(txn, caller.user_id, epoch)
            existing = self._devices.get_ids_in(txn, caller.user_id, device_ids)
            removed = [
                device_id for device_id in dict.fromkeys(device_ids) if device_id in existing
            ]
            self._sessions.remove_devices(txn, caller.user_id, removed, address)

        await self._database.write("remove_devices", write)

    async def _get_device(self, user_id: UserID, device_id: DeviceID) -> DeviceRow:
        device = await self._devices.get_device(user_id, device_id)
        if device is None:
            raise NotFound("You have no such device")
        return device


class DeviceSettings:
    """Removes the settings of a device, stored as account data, with the device. Proposal:
    MSC3890."""

    def __init__(self, store: AccountDataStore) -> None:
        self._store = store

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Remove the account data of devices, and announce it to the user's other devices."""
        for device_id in device_ids:
            for prefix in SETTING_PREFIXES:
                self._store.remove_entry(txn, user_id, None, prefix + device_id)
