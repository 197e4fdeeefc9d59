"""Administration of devices: list, create, rename and remove.

Laws:
- Removing a device has the same effect as a sign-out by its user: the sessions, keys and other
  data of the device are gone on every node before the response. The audit record contains the
  administrator and their IP address.
- A created device has no session and no keys; signing in on it needs authentication as usual.
- Creating an existing device and removing an unknown one succeed, for tools that synchronise two
  servers.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import InvalidParam, MatrixError, NotFound
from federation.protocol.ids import DeviceID, UserID
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.devices.devices import MAX_DEVICE_NAME, Devices
from homeserver.services.login.last_seen import LastSeen
from homeserver.services.login.sessions import Sessions
from storage.accounts.accounts import select_account_state
from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.dehydrated_devices import DehydratedDeviceStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction

MAX_PER_WRITE: Final = 100
"""Devices removed in one write, so that other writes do not wait long."""


class DeviceNameTooLong(MatrixError):
    """A device name has too many characters."""

    errcode, status, default_text = (
        "M_TOO_LARGE",
        400,
        f"A device name has at most {MAX_DEVICE_NAME} characters",
    )


class AccountDevices(msgspec.Struct, frozen=True):
    """All devices of an account, and the ID of the dehydrated one, if there is one."""

    devices: Sequence[DeviceRow]
    dehydrated: str | None


class DeviceAdministration:
    """Lists, creates, renames and removes devices of accounts.

    All methods raise `InvalidParam` for a user of another server, and `NotFound` for an unknown
    user.
    """

    def __init__(
        self,
        *,
        identity: ServerIdentity,
        database: Database,
        store: DeviceStore,
        dehydrated: DehydratedDeviceStore,
        accounts: Accounts,
        devices: Devices,
        sessions: Sessions,
        last_seen: LastSeen,
    ) -> None:
        self._identity = identity
        self._database = database
        self._store = store
        self._dehydrated = dehydrated
        self._accounts = accounts
        self._devices = devices
        self._sessions = sessions
        self._last_seen = last_seen

    async def get_devices(self, user_id: UserID) -> AccountDevices:
        """Return all devices, with the time and IP address of their last use."""
        await self._check_user(user_id)
        dehydrated = await self._dehydrated.get_device(user_id)
        return AccountDevices(
            await self._devices.get_devices(user_id),
            None if dehydrated is None else dehydrated.device_id,
        )

    async def get_device(self, user_id: UserID, device_id: DeviceID) -> DeviceRow:
        """Return a device, like `get_devices`. Raises `NotFound` for an unknown device."""
        await self._check_user(user_id)
        await self._last_seen.flush()
        return await self._get_device(user_id, device_id)

    async def do_create(self, user_id: UserID, device_id: DeviceID) -> None:
        """Create a device without a session; leave an existing one unchanged.

        Raises `InvalidParam` also for a deactivated account, and what `Sessions.add_device` raises.
        """
        await self._check_user(user_id)
        if await self._store.get_device(user_id, device_id) is None:
            await self._database.write("create_device", self._make, user_id, device_id)

    async def do_rename(self, user_id: UserID, device_id: DeviceID, name: str | None) -> None:
        """Rename a device; None leaves the name.

        Raises what `get_device` raises, `DeviceNameTooLong`, and `InvalidParam` for a name that
        cannot be stored.
        """
        await self._check_user(user_id)
        await self._get_device(user_id, device_id)
        if name is not None and len(name) > MAX_DEVICE_NAME:
            raise DeviceNameTooLong
        await self._devices.do_rename(user_id, device_id, name)

    async def do_remove(
        self, user_id: UserID, device_ids: Sequence[DeviceID], by: UserID, ip: str
    ) -> None:
        """Remove devices with their sessions and data; ignore unknown ones.

        `by`: the administrator who removes them. `ip`: the administrator's address.
        """
        await self._check_user(user_id)
        wanted = list(dict.fromkeys(device_ids))
        for start in range(0, len(wanted), MAX_PER_WRITE):
            batch = wanted[start : start + MAX_PER_WRITE]
            await self._database.write(
                "remove_devices_of_account", self._remove, user_id, batch, by, ip
            )

    async def _check_user(self, user_id: UserID) -> None:
        if not self._identity.is_local(user_id):
            raise InvalidParam("The user does not belong to this server")
        await self._accounts.get_account(user_id)

    async def _get_device(self, user_id: UserID, device_id: DeviceID) -> DeviceRow:
        device = await self._store.get_device(user_id, device_id)
        if device is None:
            raise NotFound("The user has no such device")
        return device

    def _make(self, txn: WriteTransaction, user_id: UserID, device_id: DeviceID) -> None:
        account = select_account_state(txn, user_id)
        if account is None or account.deactivated:
            raise InvalidParam("The account is deactivated and cannot have devices")
        self._sessions.add_device(txn, user_id, device_id, None)

    def _remove(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        device_ids: Sequence[DeviceID],
        by: UserID,
        ip: str,
    ) -> None:
        existing = self._store.get_ids_in(txn, user_id, device_ids)
        self._sessions.remove_devices(
            txn, user_id, [each for each in device_ids if each in existing], ip, by
        )
