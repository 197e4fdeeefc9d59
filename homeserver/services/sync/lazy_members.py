"""Which membership events a device has been sent already, so that lazy loading need not repeat them.

What an answer carried counts as sent only when the device comes back with that answer's token: an answer may get lost.
spec: client-server-api#lazy-loading-room-members
"""

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from federation.protocol.ids import DeviceID, UserID

Member = tuple[int, str]
"""Room number and user."""

MAX_MEMBERS = 5_000
"""Remembered for a device; past that it may be sent some again."""


class _Device(msgspec.Struct):
    confirmed: set[Member] = msgspec.field(default_factory=set)
    pending: set[Member] = msgspec.field(default_factory=set)
    pending_token: str = ""


class LazyMembers:
    """The memory of what devices were sent. For the reactor thread."""

    def __init__(self, *, capacity: int) -> None:
        """`capacity`: how many members are remembered, of all devices together."""
        self._capacity = capacity
        self._remembered = 0
        self._devices: OrderedDict[tuple[UserID, DeviceID | None], _Device] = OrderedDict()

    def sent(self, user_id: UserID, device_id: DeviceID | None, since: str | None) -> set[Member]:
        """What the device has for sure, now that it has come with this token."""
        key = (user_id, device_id)
        if since is None:
            self._forget(self._devices.pop(key, None))
        device = self._devices.setdefault(key, _Device())
        self._devices.move_to_end(key)
        before = len(device.confirmed)
        if since is not None and since == device.pending_token:
            if len(device.confirmed) + len(device.pending) > MAX_MEMBERS:
                device.confirmed = set()
            device.confirmed |= device.pending
        device.pending = set()
        self._remembered += len(device.confirmed) - before
        while self._remembered + len(self._devices) > self._capacity and len(self._devices) > 1:
            self._forget(self._devices.popitem(last=False)[1])
        return device.confirmed

    def note(self, user_id: UserID, device_id: DeviceID | None, members: Iterable[Member], token: str) -> None:
        """These go out with the answer that has this token."""
        device = self._devices.get((user_id, device_id))
        if device is not None:
            device.pending = set(members)
            device.pending_token = token

    def _forget(self, device: _Device | None) -> None:
        if device is not None:
            self._remembered -= len(device.confirmed)
