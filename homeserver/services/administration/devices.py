"""Devices of accounts, as administrators list, make, name and remove them.

Laws:
- A device that is removed is signed out as if its user had: with all that is kept for it, at every
  node, before that is answered. The record says which administrator did it, and whence.
- A device that is made has no session and no keys: who signs in on it has proved who they are.
- What is there already, or gone already, is no error: tools that bring two servers in line say
  things twice.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import InvalidParam, MatrixError, NotFound
from federation.protocol.ids import DeviceID, UserID
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.devices.devices import LONGEST_DEVICE_NAME, Devices
from homeserver.services.login.last_seen import LastSeen
from homeserver.services.login.sessions import Sessions
from storage.accounts.accounts import select_standing
from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.dehydrated_devices import DehydratedDeviceStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction

MOST_AT_ONCE: Final = 100
"""Devices that are removed in one write, so that others need not wait for long."""


class NameTooLong(MatrixError):
    """A name of a device has too many characters."""

    errcode, status, default_text = (
        "M_TOO_LARGE",
        400,
        f"A device's name has at most {LONGEST_DEVICE_NAME} characters",
    )


class DevicesOfAccount(msgspec.Struct, frozen=True):
    """All devices of an account, and which of them is the dehydrated one, if it has one."""

    devices: Sequence[DeviceRow]
    dehydrated: str | None


class DeviceAdministration:
    """Lists, makes, names and removes devices of accounts. Everything here raises `InvalidParam`
    for a user of another server, and `NotFound` for one whom there is not."""

    def __init__(
        self,
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

    async def get_devices(self, user_id: UserID) -> DevicesOfAccount:
        """All of them, with when and whence they were last seen, as it is known now."""
        await self._check_user(user_id)
        dehydrated = await self._dehydrated.get_device(user_id)
        return DevicesOfAccount(
            await self._devices.get_devices(user_id),
            None if dehydrated is None else dehydrated.device_id,
        )

    async def get_device(self, user_id: UserID, device_id: DeviceID) -> DeviceRow:
        """One of them, likewise. Raises `NotFound` where there is none of this id."""
        await self._check_user(user_id)
        await self._last_seen.flush()
        return await self._get_device(user_id, device_id)

    async def do_make(self, user_id: UserID, device_id: DeviceID) -> None:
        """Make one that nobody is signed in on; one that is there stays as it is. Raises
        `InvalidParam` also for an account that was closed, and as `Sessions.add_device`."""
        await self._check_user(user_id)
        if await self._store.get_device(user_id, device_id) is None:
            await self._database.write("make_device", self._make, user_id, device_id)

    async def do_rename(self, user_id: UserID, device_id: DeviceID, name: str | None) -> None:
        """None leaves the name. Raises as `get_device`, `NameTooLong`, `InvalidParam` for a name
        that cannot be kept."""
        await self._check_user(user_id)
        await self._get_device(user_id, device_id)
        if name is not None and len(name) > LONGEST_DEVICE_NAME:
            raise NameTooLong
        await self._devices.do_rename(user_id, device_id, name)

    async def do_remove(
        self, user_id: UserID, device_ids: Sequence[DeviceID], by: UserID, ip: str
    ) -> None:
        """Remove those of them that there are, with their sessions and all that is kept for them.
        `by`: the administrator who does, `ip`: whence."""
        await self._check_user(user_id)
        wanted = list(dict.fromkeys(device_ids))
        for start in range(0, len(wanted), MOST_AT_ONCE):
            some = wanted[start : start + MOST_AT_ONCE]
            await self._database.write(
                "remove_devices_of_account", self._remove, user_id, some, by, ip
            )

    async def _check_user(self, user_id: UserID) -> None:
        if not self._identity.is_local(user_id):
            raise InvalidParam("The user is not one of this server")
        await self._accounts.get_account(user_id)

    async def _get_device(self, user_id: UserID, device_id: DeviceID) -> DeviceRow:
        device = await self._store.get_device(user_id, device_id)
        if device is None:
            raise NotFound("The user has no such device")
        return device

    def _make(self, txn: WriteTransaction, user_id: UserID, device_id: DeviceID) -> None:
        standing = select_standing(txn, user_id)
        if standing is None or standing.deactivated:
            raise InvalidParam("The account is closed: it has no devices any more")
        self._sessions.add_device(txn, user_id, device_id, None)

    def _remove(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        device_ids: Sequence[DeviceID],
        by: UserID,
        ip: str,
    ) -> None:
        there = self._store.get_ids_in(txn, user_id, device_ids)
        self._sessions.remove_devices(
            txn, user_id, [each for each in device_ids if each in there], ip, by
        )
