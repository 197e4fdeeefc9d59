"""Cache of the devices of local users: a message to every device of a large room needs no query.

Laws:
- A change of a user's devices invalidates the user; a write of another process invalidates all. A
  result that a change overtakes while it is read is not cached.
- So the cache is true at the head of the stream. The write itself detects devices that were added
  or removed since (`ToDeviceStore.get_recipients`).

For the reactor thread.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Final

from storage.encryption.to_device import KnownDevices, Recipients
from storage.engine.streams import Change, Streams, Topic

CAPACITY: Final = 50_000
"""Devices and users, about 200 bytes each. Every 200 bytes of a user ID count as one more, since
user IDs can be made up."""


class DevicesOfUsers:
    """Caches the devices of local users."""

    def __init__(self, streams: Streams, *, capacity: int = CAPACITY) -> None:
        self._streams = streams
        self._capacity = capacity
        self._users: dict[str, Recipients] = {}
        self._weight = 0
        self.changes = 0
        """Increases with every invalidation."""
        streams.subscribe(self._on_changes, Topic.DEVICE)
        streams.watch(self._on_remote_write)

    def find(self, user_ids: Set[str]) -> KnownDevices | None:
        """Return the cached devices of these users, and maybe of others; None unless all are
        cached. The result is valid only until the next change."""
        return (
            KnownDevices(self._users, self._streams.current())
            if user_ids <= self._users.keys()
            else None
        )

    def keep(self, found: Mapping[str, Recipients], changes: int) -> None:
        """Cache devices that were read when `self.changes` was `changes`."""
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

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.DEVICE and change.user_id is not None:
                self.changes += 1
                self._drop(change.user_id)

    def _on_remote_write(self, _after: int, _upto: int) -> None:
        """Invalidate all: another process may have changed any device."""
        self.changes += 1
        self._users.clear()
        self._weight = 0


def _weight(user_id: str, devices: Recipients) -> int:
    return 1 + len(user_id) // 200 + len(devices)
