"""Cache of the devices of local users, so that a to-device message to all devices in a large room
needs no query.

The stream invalidates an entry when a device changes. When a message is written, a change on
another node may not have arrived yet. So the write checks whether a device was added or removed, on
any node, after the position up to which this node has read the stream. If so, it reads the devices
again (`ToDeviceStore.get_recipients`).

The cache is used only on the reactor thread.
"""

from collections.abc import Mapping, Set
from typing import Final

from storage.cache import StreamCache
from storage.encryption.to_device import DeviceSnapshot, Recipients
from storage.engine.streams import Streams, Topic

CAPACITY: Final = 50_000
"""Devices and users, about 200 bytes each. Every 200 bytes of a user ID count as one more, since
clients can make up long IDs."""


class DeviceCache:
    """Caches the devices of local users, as writes have found them."""

    def __init__(self, *, streams: Streams, capacity: int = CAPACITY) -> None:
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
    def version(self) -> int:
        """The number of invalidations. Read it before a write, and pass it to `add`."""
        return self._users.changes

    def find(self, user_ids: Set[str]) -> DeviceSnapshot | None:
        """Return the devices of these users; None unless all of them are cached."""
        found = self._users.find_many(user_ids)
        return (
            DeviceSnapshot(found, self._streams.current()) if len(found) == len(user_ids) else None
        )

    def add(self, found: Mapping[str, Recipients], changes: int) -> None:
        """Cache the devices of these users, unless a change came after `version` was `changes`."""
        for user_id, devices in found.items():
            self._users.put(user_id, devices, since=changes)


def _weigh(user_id: str, devices: Recipients) -> int:
    return 1 + len(user_id) // 200 + len(devices)
