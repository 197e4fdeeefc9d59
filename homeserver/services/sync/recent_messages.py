"""The latest messages to devices, in memory: a device that keeps up gets them without a question to the database.

They are in the database all the same, until the device has them or is gone. For the reactor thread.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from storage.streams import Change, Streams, Topic
from storage.to_device import DeviceMessage, DevicesGone, NewMessage, NewMessages

MOST_BYTES: Final = 16 << 20
"""Of contents; what many devices are sent alike counts once, where it is one object."""
MOST_MESSAGES: Final = 50_000

DeviceKey = tuple[str, str]
"""User and device."""


class RecentMessages:
    """What was sent to devices of late by this node."""

    def __init__(self, streams: Streams, *, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._complete_from = streams.current()
        self._by_device: dict[DeviceKey, deque[DeviceMessage]] = {}
        self._order: deque[tuple[Sequence[NewMessage], int]] = deque()
        """What was sent at once, with the bytes of it."""
        self._number = 0
        self._bytes = 0
        streams.subscribe(self._hear, Topic.TO_DEVICE, Topic.DEVICES_GONE)
        streams.watch(self._heed_others)

    def since(self, device: DeviceKey, position: int) -> Sequence[DeviceMessage] | None:
        """All messages to the device after the position, in order; None if that reaches further back than is kept."""
        if position < self._complete_from:
            return None
        return [message for message in self._by_device.get(device, ()) if message.position > position]

    def forget(self, device: DeviceKey, upto: int) -> None:
        """The device has all up to that position."""
        messages = self._by_device.get(device)
        while messages and messages[0].position <= upto:
            messages.popleft()
        if messages is not None and not messages:
            del self._by_device[device]

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change.detail, DevicesGone) and change.user_id is not None:
                for device_id in change.detail.device_ids:
                    self._by_device.pop((change.user_id, device_id), None)
            elif isinstance(change.detail, NewMessages):
                self._add(change.detail.messages)
            elif change.topic is Topic.TO_DEVICE:
                self._clear(change.position)
        while self._bytes > self._most_bytes or self._number > MOST_MESSAGES:
            messages, size = self._order.popleft()
            self._number -= len(messages)
            self._bytes -= size
            for message in messages:
                self.forget((message.user_id, message.device_id), message.position)
            self._complete_from = max(self._complete_from, messages[-1].position)

    def _add(self, messages: Sequence[NewMessage]) -> None:
        by_device = self._by_device
        for message in messages:
            key = (message.user_id, message.device_id)
            waiting = by_device.get(key)
            if waiting is None:
                by_device[key] = deque((message,))
            else:
                waiting.append(message)
        size = sum(map(len, {id(message.content): message.content for message in messages}.values()))
        self._order.append((messages, size))
        self._number += len(messages)
        self._bytes += size

    def _heed_others(self, _after: int, upto: int) -> None:
        """Another node wrote: to whom is not known here."""
        self._clear(upto)

    def _clear(self, upto: int) -> None:
        self._by_device.clear()
        self._order.clear()
        self._number = self._bytes = 0
        self._complete_from = max(self._complete_from, upto)
