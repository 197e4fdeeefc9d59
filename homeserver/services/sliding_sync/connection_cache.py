"""What is kept in memory of the connections of clients: bounded for each device, and in bytes for
all. Who was idle longest goes first, and with a device goes what is kept of it.

Clients choose how many connections they name, and how long what they ask for is; so neither is a
bound by itself.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import msgspec

from storage.encryption.to_device import DevicesGone
from storage.engine.streams import Change, Streams, Topic
from storage.sync.sliding_connections import MOST_OF_A_DEVICE, ConnectionKey

T = TypeVar("T")


class ConnectionCache(Generic[T]):
    """One thing of each connection, of as many of a device as are stored. For the reactor
    thread."""

    def __init__(self, streams: Streams, *, capacity: int) -> None:
        """`capacity`: about how many bytes are kept."""
        self._capacity = capacity
        self._devices: OrderedDict[tuple[str, str], OrderedDict[str, tuple[T, int]]] = OrderedDict()
        """By user and device: what is kept by `conn_id`, and about how many bytes it takes."""
        self.weight = 0
        """About how many bytes are kept."""
        streams.subscribe(self._on_changes, Topic.DEVICES_GONE)

    def get(self, key: ConnectionKey) -> tuple[T, int] | None:
        """What is kept, and its weight."""
        of_device = self._devices.get((key.user_id, key.device_id))
        return None if of_device is None else of_device.get(key.conn_id)

    def put(self, key: ConnectionKey, value: T, weight: int) -> None:
        """Keep this from now on."""
        device = (key.user_id, key.device_id)
        of_device = self._devices.setdefault(device, OrderedDict())
        former = of_device.pop(key.conn_id, None)
        of_device[key.conn_id] = (value, weight)
        self.weight += weight - (0 if former is None else former[1])
        if len(of_device) > MOST_OF_A_DEVICE:
            _, (_, dropped) = of_device.popitem(last=False)
            self.weight -= dropped
        self._devices.move_to_end(device)
        while self.weight > self._capacity:
            self._forget(next(iter(self._devices)))

    def replace(self, key: ConnectionKey, value: T) -> None:
        """Keep this instead of what is kept, which weighs as much."""
        device = (key.user_id, key.device_id)
        of_device = self._devices[device]
        of_device[key.conn_id] = (value, of_device[key.conn_id][1])
        of_device.move_to_end(key.conn_id)
        self._devices.move_to_end(device)

    def _forget(self, device: tuple[str, str]) -> None:
        gone = self._devices.pop(device, None)
        if gone is not None:
            self.weight -= sum(each for _, each in gone.values())

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change.detail, DevicesGone) and change.user_id is not None:
                for device_id in change.detail.device_ids:
                    self._forget((change.user_id, device_id))


def weigh(value: object, seen: set[int]) -> int:
    """About how many bytes a value takes, with all that it is made of; what stands in several
    places counts once."""
    if isinstance(value, str):
        return 64 + len(value)
    if id(value) in seen:
        return 8
    seen.add(id(value))
    if isinstance(value, msgspec.Struct):
        return 64 + sum(weigh(getattr(value, name), seen) for name in value.__struct_fields__)
    if isinstance(value, Mapping):
        return 64 + sum(64 + weigh(key, seen) + weigh(each, seen) for key, each in value.items())
    if isinstance(value, list | tuple | frozenset):
        return 64 + sum(32 + weigh(each, seen) for each in value)
    return 32
