"""Messages from device to device. spec: client-server-api#send-to-device-messaging"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from federation.identity import ServerIdentity
from federation.protocol.endpoint import Requester
from federation.protocol.errors import InvalidParam, UserSuspended
from storage.database import Database
from storage.devices import DeviceStore
from storage.sent_transactions import AlreadySent, SentTransaction, add_transaction
from storage.to_device import ToDeviceStore
from storage.transaction import WriteTransaction

ALL_DEVICES: Final = "*"
MOST_MESSAGES: Final = 10_000
"""In one request, every device of a wildcard counted."""
LONGEST_TYPE: Final = 255
ANSWER: Final = b"{}"

Messages = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Contents by user and device."""


class ToDevice:
    """Sends messages to devices."""

    def __init__(
        self,
        database: Database,
        store: ToDeviceStore,
        devices: DeviceStore,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._store = store
        self._devices = devices
        self._identity = identity
        self._now_ms = now_ms

    async def do_send(self, caller: Requester, type: str, txn_id: str, messages: Messages) -> None:
        """Send each message once, however often the request is repeated. Devices that do not exist get nothing.

        Raises InvalidParam; UserSuspended for suspended users who write to others than themselves: they may still verify
        their own devices. spec: client-server-api#account-suspension
        """
        if len(type) > LONGEST_TYPE or len(txn_id) > LONGEST_TYPE:
            raise InvalidParam("The type or the transaction id is too long")
        if caller.is_suspended and any(user_id != caller.user_id for user_id in messages):
            raise UserSuspended
        sent = SentTransaction(caller.user_id, caller.device_id or "", f"sendToDevice/{type}", txn_id)
        now = self._now_ms()
        local = [user_id for user_id in messages if self._identity.is_local(user_id)]
        encoded = {
            (user_id, device_id): msgspec.json.encode({"type": type, "sender": caller.user_id, "content": content})
            for user_id in local
            for device_id, content in messages[user_id].items()
        }

        def write(txn: WriteTransaction) -> None:
            add_transaction(txn, sent, None, ANSWER, now)
            waiting: dict[tuple[str, str], list[bytes]] = {}
            for user_id, devices in self._devices.get_devices_in(txn, local).items():
                for device in devices:
                    for name in (device.device_id, ALL_DEVICES):
                        content = encoded.get((user_id, name))
                        if content is not None:
                            waiting.setdefault((user_id, device.device_id), []).append(content)
            if sum(map(len, waiting.values())) > MOST_MESSAGES:
                raise InvalidParam(f"One request may send to at most {MOST_MESSAGES} devices")
            if waiting:
                self._store.add_messages(txn, waiting)

        try:
            await self._database.write("send_to_device", write)
        except AlreadySent:
            return
