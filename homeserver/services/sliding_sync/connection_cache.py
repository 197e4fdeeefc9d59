"""A cache with one value per sliding sync connection.

A client chooses the number of its connections and, by its requests, the size of each value. So two
limits apply: one to the number of values of a device, one to the total weight of all values. The
caller sets the weight of a value by its size. Above the weight limit, the least recently used value
is evicted. Above the limit of a device, the device's value that was set longest ago is evicted. The
values of a deleted device are removed.
"""

from collections.abc import Sequence
from typing import Generic, TypeVar

from storage.cache import LRU
from storage.encryption.to_device import DevicesDeleted
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.sync.sliding_connections import MAX_DEVICE_CONNECTIONS, SlidingConnectionKey

T = TypeVar("T")


class ConnectionCache(Generic[T]):
    """One value for each connection, of at most `MAX_DEVICE_CONNECTIONS` connections of a device.
    Use this class only on the reactor thread."""

    def __init__(self, *, streams: Streams, capacity: int) -> None:
        """`capacity`: the weight of all values together."""
        self._values: LRU[SlidingConnectionKey, tuple[T, int]] = LRU(
            max_weight=capacity, weigh=lambda _, weighed: weighed[1], on_remove=self._on_removed
        )
        """The values, each with its weight."""
        self._of_devices: dict[tuple[str, str], dict[str, None]] = {}
        """By user and device: the `conn_id`s of the values, the latest at the end."""
        streams.subscribe(self._on_changes, Topic.DEVICES_DELETED, stage=Stage.CACHE)

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._values)

    @property
    def weight(self) -> int:
        """The weight of all values."""
        return self._values.weight

    def get(self, key: SlidingConnectionKey) -> tuple[T, int] | None:
        """Return the value and its weight."""
        return self._values.get(key)

    def put(self, key: SlidingConnectionKey, value: T, weight: int) -> None:
        """Set the value."""
        self._values.put(key, (value, weight))
        if key not in self._values:
            return  # it is heavier than the capacity
        of_device = self._of_devices.setdefault((key.user_id, key.device_id), {})
        of_device[key.conn_id] = None
        if len(of_device) > MAX_DEVICE_CONNECTIONS:
            self.remove(SlidingConnectionKey(key.user_id, key.device_id, next(iter(of_device))))

    def remove(self, key: SlidingConnectionKey) -> None:
        """Remove the value, if there is one."""
        self._values.pop(key)

    def _on_removed(self, key: SlidingConnectionKey, _: tuple[T, int]) -> None:
        of_device = self._of_devices.get((key.user_id, key.device_id), {})
        of_device.pop(key.conn_id, None)
        if not of_device:
            self._of_devices.pop((key.user_id, key.device_id), None)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change.detail, DevicesDeleted) and change.user_id is not None:
                for device_id in change.detail.device_ids:
                    for conn_id in list(self._of_devices.get((change.user_id, device_id), ())):
                        self.remove(SlidingConnectionKey(change.user_id, device_id, conn_id))
