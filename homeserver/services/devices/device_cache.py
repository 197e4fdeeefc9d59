"""A cache of the devices of our users: a message to each device of a large room needs no query.

The cache is current at the head of the stream. The write of a message finds out whether a device
came or went since, on any node (`ToDeviceStore.get_recipients`). For the reactor thread.
"""

from collections.abc import Mapping, Set
from typing import Final

from storage.cache import StreamCache
from storage.encryption.to_device import KnownDevices, Recipients
from storage.engine.streams import Streams, Topic

CAPACITY: Final = 50_000
"""Devices and users, some 200 bytes each. Every 200 bytes of a user id count as one: clients can
make up long ones."""


class DevicesOfUsers:
    """Devices by user, as writes have found them."""

    def __init__(self, streams: Streams, *, capacity: int = CAPACITY) -> None:
        self._streams = streams
        self._users: StreamCache[str, Recipients] = StreamCache(
            streams,
            Topic.DEVICE,
            keys_of=lambda change: () if change.user_id is None else (change.user_id,),
            max_weight=capacity,
            weigh=_weigh,
        )

    @property
    def cache(self) -> StreamCache[str, Recipients]:
        """The devices by user, for metrics."""
        return self._users

    @property
    def changes(self) -> int:
        """A count of changes, to be read before a write, for `keep`."""
        return self._users.changes

    def find(self, user_ids: Set[str]) -> KnownDevices | None:
        """The devices of these users; None if not all of them are cached."""
        found = self._users.find_many(user_ids)
        return KnownDevices(found, self._streams.current()) if len(found) == len(user_ids) else None

    def keep(self, found: Mapping[str, Recipients], changes: int) -> None:
        """Cache the devices of these users, unless something has changed since `changes` was
        read."""
        for user_id, devices in found.items():
            self._users.put(user_id, devices, since=changes)


def _weigh(user_id: str, devices: Recipients) -> int:
    return 1 + len(user_id) // 200 + len(devices)
