"""Which membership events a device has been sent already, so that lazy loading need not repeat
them.

Laws:
- What an answer carried counts as sent only when the device comes back with that answer's token: an
  answer may get lost.
- What is remembered is what the device has at one token, with what further answers to that token
  carry. A device that comes with any other one is told anew: it went back, as an app does that is
  opened again before it had stored what it heard last, or other nodes have answered it meanwhile,
  of which one may have left out that a member is another by now.

spec: client-server-api#lazy-loading-room-members
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable

import msgspec

Member = tuple[int, str]
"""Room number and user."""

MAX_MEMBERS = 5_000
"""Remembered for a device; past that it may be sent some again."""
MOST_ANSWERS = 8
"""To one token that are remembered, the latest ones: mostly one, more where a device asks again, or
waits for long."""


class _Device(msgspec.Struct, gc=False):
    token: str
    """The one that it came with last; empty at its beginning."""
    confirmed: set[Member] = set()
    """What it has for sure."""
    answers: dict[str, set[Member]] = {}
    """By the tokens of the answers to it, what they carried."""
    counted: int = 0
    """So many of `confirmed` are in the sum of all devices."""


class LazyMembers:
    """The memory of what devices were sent. For the reactor thread."""

    def __init__(self, *, capacity: int) -> None:
        """`capacity`: how many members are remembered, of all devices together."""
        self._capacity = capacity
        self._remembered = 0
        self._devices: OrderedDict[Hashable, _Device] = OrderedDict()

    def __len__(self) -> int:
        """Members that are remembered."""
        return self._remembered

    def sent(self, key: Hashable, since: str | None) -> set[Member]:
        """What the device has for sure, now that it has come with this token. Who sends less than
        that takes it out of the set. `key`: of a user which device, or which connection of it."""
        device = self._devices.get(key)
        if device is None or not since or (since != device.token and since not in device.answers):
            self._forget(key)
            device = self._devices[key] = _Device(since or "")
        elif since != device.token:
            carried = device.answers[since]
            if carried:
                if len(device.confirmed) + len(carried) > MAX_MEMBERS:
                    device.confirmed = set()
                device.confirmed |= carried
            device.token, device.answers = since, {}
        self._devices.move_to_end(key)
        if (count := len(device.confirmed)) != device.counted:
            self._remembered += count - device.counted
            device.counted = count
        while self._remembered + len(self._devices) > self._capacity and len(self._devices) > 1:
            self._forget(next(iter(self._devices)))
        return device.confirmed

    def note(self, key: Hashable, since: str | None, members: Iterable[Member], token: str) -> None:
        """These go out with the answer that has this token, to who has come with the other one."""
        device = self._devices.get(key)
        if device is None or device.token != (since or "") or token == device.token:
            return  # the device has gone on without this answer; or there is nothing in it
        device.answers.setdefault(token, set()).update(members)
        if len(device.answers) > MOST_ANSWERS:
            del device.answers[next(iter(device.answers))]

    def _forget(self, key: Hashable) -> None:
        device = self._devices.pop(key, None)
        if device is not None:
            self._remembered -= device.counted
