"""Dehydrated devices: they collect room keys for a user while none of the user's devices is signed
in.

Laws:
- A user has at most one dehydrated device. If an upload has another device ID or other identity
  keys, it replaces the stored device: the same write stores the new device with its keys, and
  deletes the old device with its keys and pending messages. If an upload repeats the stored device,
  the pending messages stay.
- A dehydrated device appears as an ordinary device in device lists and to other servers, but nobody
  can sign in on it.
- Reading the messages of a dehydrated device deletes none of them. So if a client is interrupted
  while it reads them, it or another client can start again.

spec: MSC3814
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.errors import Forbidden, InvalidParam, MissingParam, NotFound
from federation.protocol.ids import ALL_DEVICES, DeviceID, UserID, parse_device_id
from homeserver.api.requester import Requester
from homeserver.services.devices.devices import check_device_name
from homeserver.services.encryption.device_keys import DeviceKeys, KeyUpload, parse_upload
from homeserver.services.login.sessions import Sessions
from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.cross_signing import has_cross_signing_key
from storage.encryption.dehydrated_devices import (
    DehydratedDevice,
    DehydratedDeviceStore,
    select_dehydrated,
)
from storage.encryption.device_keys import select_device_keys
from storage.encryption.to_device import DeviceMessage, ToDeviceStore
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MAX_DATA_BYTES: Final = 64 << 10
PAGE_SIZE: Final = 100
"""Messages on one page."""
MAX_TOKEN_DIGITS: Final = 18


class NewDehydratedDevice(KeyUpload, frozen=True, kw_only=True):
    """The body of the upload: the device with all its keys."""

    device_id: str
    device_data: dict[str, Any]
    initial_device_display_name: str | None = None


class DehydratedMessagePage(msgspec.Struct, frozen=True):
    """A page of to-device messages."""

    messages: Sequence[DeviceMessage]
    end: int
    """The position of the last message: the next page starts after it."""
    is_last: bool


class DehydratedDevices:
    """Stores, reads and removes dehydrated devices."""

    def __init__(
        self,
        *,
        database: Database,
        store: DehydratedDeviceStore,
        devices: DeviceStore,
        keys: DeviceKeys,
        to_device: ToDeviceStore,
        sessions: Sessions,
        now_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._store = store
        self._devices = devices
        self._keys = keys
        self._to_device = to_device
        self._sessions = sessions
        self._now_ms = now_ms

    async def get_device(self, user_id: UserID) -> DehydratedDevice:
        """Return the user's dehydrated device. Raises NotFound."""
        device = await self._store.get_device(user_id)
        if device is None:
            raise NotFound("You have no dehydrated device")
        return device

    async def do_set(self, caller: Requester, new: NewDehydratedDevice) -> None:
        """Store a device, replacing the previous one. Raises BadJson, InvalidParam, MissingParam,
        Forbidden."""
        user_id, device_id = caller.user_id, parse_device_id(new.device_id)
        if device_id == ALL_DEVICES:
            raise InvalidParam("The device ID cannot be *: it stands for all devices")
        if new.device_keys is None:
            raise MissingParam("device_keys of the dehydrated device are missing")
        if not isinstance(new.device_data.get("algorithm"), str):
            raise InvalidParam("device_data has no algorithm")
        data = msgspec.json.encode(new.device_data)
        if len(data) > MAX_DATA_BYTES:
            raise InvalidParam(f"device_data may have at most {MAX_DATA_BYTES} bytes")
        keys = parse_upload(user_id, device_id, new)
        name = check_device_name(new.initial_device_display_name)
        device = DeviceRow(user_id, device_id, name, self._now_ms())

        def write(txn: WriteTransaction) -> None:
            old = select_dehydrated(txn, user_id)
            is_repeat = (
                old is not None
                and old.device_id == device_id
                and _has_identity(txn, device, new.device_keys)
            )
            if old is not None and not is_repeat:
                self._sessions.remove_devices(txn, user_id, [DeviceID(old.device_id)])
            if has_cross_signing_key(txn, user_id, device_id):
                raise Forbidden("The device ID is the name of one of your cross-signing keys")
            if not self._devices.add_device(txn, device) and not is_repeat:
                raise Forbidden("You are signed in on a device with this ID")
            self._keys.put_keys(txn, user_id, device_id, keys)
            self._store.set_device(txn, DehydratedDevice(user_id, device_id, data))

        await self._database.write("set_dehydrated_device", write)

    async def do_remove(self, user_id: UserID) -> str:
        """Remove the user's dehydrated device and return its ID. Raises NotFound."""

        def write(txn: WriteTransaction) -> str | None:
            device = select_dehydrated(txn, user_id)
            if device is None:
                return None
            self._sessions.remove_devices(txn, user_id, [DeviceID(device.device_id)])
            return device.device_id

        removed = await self._database.write("remove_dehydrated_device", write)
        if removed is None:
            raise NotFound("You have no dehydrated device")
        return removed

    async def get_messages(
        self, user_id: UserID, device_id: str, after: str | None
    ) -> DehydratedMessagePage:
        """Return a page of its messages. `after`: the end of the previous page. Raises Forbidden,
        InvalidParam."""
        device = await self._store.get_device(user_id)
        if device is None or device.device_id != device_id:
            raise Forbidden("This is not your dehydrated device")
        if after is not None and not (
            after.isascii() and after.isdigit() and len(after) <= MAX_TOKEN_DIGITS
        ):
            raise InvalidParam("next_batch is not one that this server has sent")
        start = int(after or 0)
        upto = self._database.streams.current()
        messages = await self._to_device.get_messages(
            user_id, device_id, start, upto, PAGE_SIZE + 1
        )
        page = messages[:PAGE_SIZE]
        return DehydratedMessagePage(
            page, page[-1].position if page else start, len(page) == len(messages)
        )


def _has_identity(
    txn: Transaction, device: DeviceRow, device_keys: Mapping[str, Any] | None
) -> bool:
    """Return whether the device has published these identity keys. Signatures do not count."""
    for row in select_device_keys(txn, [device.user_id]).get(device.user_id, ()):
        if row.device_id == device.device_id and device_keys is not None:
            return bool(msgspec.json.decode(row.keys)["keys"] == device_keys["keys"])
    return False
