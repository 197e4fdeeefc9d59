"""Which devices our users have, from memory: a message to each device of a large room asks the
database nothing.

Laws:
- A user is forgotten when the stream tells that their devices changed, everybody when another
  process wrote. What a change overtakes while it is read is not kept.
- So what is known here is what there was at the head of the stream. Whether a device came or went
  since, anywhere, is seen in the write (`ToDeviceStore.get_recipients`).

For the reactor thread.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Final

from storage.encryption.to_device import KnownDevices, Recipients
from storage.engine.streams import Change, Streams, Topic

CAPACITY: Final = 50_000
"""Devices and users, some 200 bytes each; of the names of users that somebody makes up every 200
bytes count as one."""


class DevicesOfUsers:
    """A cache of the devices of our users."""

    def __init__(self, streams: Streams, *, capacity: int = CAPACITY) -> None:
        self._streams = streams
        self._capacity = capacity
        self._users: dict[str, Recipients] = {}
        self._weight = 0
        self.changes = 0
        """Rises whenever something is forgotten."""
        streams.subscribe(self._hear, Topic.DEVICE)
        streams.watch(self._heed_others)

    def find(self, user_ids: Set[str]) -> KnownDevices | None:
        """The devices of these users, and maybe of others, to be looked at now; None if not all of
        them are known."""
        return (
            KnownDevices(self._users, self._streams.current())
            if user_ids <= self._users.keys()
            else None
        )

    def keep(self, found: Mapping[str, Recipients], changes: int) -> None:
        """The devices of these users were read, when `changes` was that."""
        if changes != self.changes:
            return
        for user_id, devices in found.items():
            self._drop(user_id)
            self._users[user_id] = devices
            self._weight += _weight(user_id, devices)
        while self._weight > self._capacity:
            self._drop(next(iter(self._users)))

    def _drop(self, user_id: str) -> None:
        devices = self._users.pop(user_id, None)
        if devices is not None:
            self._weight -= _weight(user_id, devices)

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.DEVICE and change.user_id is not None:
                self.changes += 1
                self._drop(change.user_id)

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another process wrote: whose devices is not known here."""
        self.changes += 1
        self._users.clear()
        self._weight = 0


def _weight(user_id: str, devices: Recipients) -> int:
    return 1 + len(user_id) // 200 + len(devices)
