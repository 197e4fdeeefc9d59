"""A cache with one value per connection, bounded per device and in bytes for all.

The device that was idle longest is evicted first. A deleted device takes its values along. Clients
choose how many connections they name and how much they ask for, so neither bounds the other.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

from storage.encryption.to_device import DevicesDeleted
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.sync.sliding_connections import MAX_DEVICE_CONNECTIONS, SlidingConnectionKey

T = TypeVar("T")


class ConnectionCache(Generic[T]):
    """One value for each connection; of a device as many as are stored. For the reactor thread."""

    def __init__(self, *, streams: Streams, capacity: int) -> None:
        """`capacity`: the size in bytes, about."""
        self._capacity = capacity
        self._devices: OrderedDict[tuple[str, str], OrderedDict[str, tuple[T, int]]] = OrderedDict()
        """By user and device: the values by `conn_id`, each with its size."""
        self.weight = 0
        """The size of all values in bytes, about."""
        streams.subscribe(self._on_changes, Topic.DEVICES_DELETED, stage=Stage.CACHE)

    def get(self, key: SlidingConnectionKey) -> tuple[T, int] | None:
        """Return the value and its size."""
        of_device = self._devices.get((key.user_id, key.device_id))
        return None if of_device is None else of_device.get(key.conn_id)

    def put(self, key: SlidingConnectionKey, value: T, weight: int) -> None:
        """Set the value."""
        device = (key.user_id, key.device_id)
        of_device = self._devices.setdefault(device, OrderedDict())
        former = of_device.pop(key.conn_id, None)
        of_device[key.conn_id] = (value, weight)
        self.weight += weight - (0 if former is None else former[1])
        if len(of_device) > MAX_DEVICE_CONNECTIONS:
            _, (_, removed) = of_device.popitem(last=False)
            self.weight -= removed
        self._devices.move_to_end(device)
        while self.weight > self._capacity:
            self._evict(next(iter(self._devices)))

    def replace(self, key: SlidingConnectionKey, value: T) -> None:
        """Replace the value by one of the same size."""
        device = (key.user_id, key.device_id)
        of_device = self._devices[device]
        of_device[key.conn_id] = (value, of_device[key.conn_id][1])
        of_device.move_to_end(key.conn_id)
        self._devices.move_to_end(device)

    def _evict(self, device: tuple[str, str]) -> None:
        evicted = self._devices.pop(device, None)
        if evicted is not None:
            self.weight -= sum(each for _, each in evicted.values())

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change.detail, DevicesDeleted) and change.user_id is not None:
                for device_id in change.detail.device_ids:
                    self._evict((change.user_id, device_id))
