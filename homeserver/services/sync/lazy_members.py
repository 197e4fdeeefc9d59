"""Which membership events a device has been sent already, so that lazy loading need not repeat them.

Laws:
- What an answer carried counts as sent only when the device comes back with that answer's token: an answer may get lost.
- A device that goes back to a token from before that knows only what it knew then, as an app does that is opened again before
  it had stored what it heard last: it is told anew.

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


class _Device(msgspec.Struct, gc=False):
    confirmed: set[Member] = set()
    pending: set[Member] = set()
    pending_token: str = ""
    confirmed_at: int = 0
    """The place of the token with which members were confirmed last."""


class LazyMembers:
    """The memory of what devices were sent. For the reactor thread."""

    def __init__(self, *, capacity: int) -> None:
        """`capacity`: how many members are remembered, of all devices together."""
        self._capacity = capacity
        self._remembered = 0
        self._devices: OrderedDict[tuple[UserID, DeviceID | None], _Device] = OrderedDict()

    def sent(self, user_id: UserID, device_id: DeviceID | None, since: str | None, at: int = 0) -> set[Member]:
        """What the device has for sure, now that it has come with this token. `at`: its place, where it may be an old one."""
        key = (user_id, device_id)
        device = self._devices.get(key)
        if device is not None and (since is None or at < device.confirmed_at):
            self._forget(self._devices.pop(key))
            device = None
        if device is None:
            device = self._devices[key] = _Device()
            self._forget_idle()
        self._devices.move_to_end(key)
        is_arrived = since is not None and since == device.pending_token
        if is_arrived:
            device.confirmed_at = at
        if device.pending:  # as a rule nobody was new in the answer
            if is_arrived:
                self._confirm(device)
            device.pending = set()
        return device.confirmed

    def _confirm(self, device: _Device) -> None:
        before = len(device.confirmed)
        if before + len(device.pending) > MAX_MEMBERS:
            device.confirmed = set()
        device.confirmed |= device.pending
        self._remembered += len(device.confirmed) - before
        self._forget_idle()

    def _forget_idle(self) -> None:
        while self._remembered + len(self._devices) > self._capacity and len(self._devices) > 1:
            self._forget(self._devices.popitem(last=False)[1])

    def note(self, user_id: UserID, device_id: DeviceID | None, members: Iterable[Member], token: str) -> None:
        """These go out with the answer that has this token."""
        device = self._devices.get((user_id, device_id))
        if device is not None:
            device.pending = set(members)
            device.pending_token = token

    def _forget(self, device: _Device) -> None:
        self._remembered -= len(device.confirmed)
