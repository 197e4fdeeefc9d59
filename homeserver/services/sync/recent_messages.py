"""The latest messages to devices, in memory: a device that keeps up gets them without a question to the database.

They are in the database all the same, until the device has them or is gone. For the reactor thread.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Final

from storage.streams import Change, Streams, Topic
from storage.to_device import DeviceMessage, DevicesGone, NewMessages

MOST_BYTES: Final = 16 << 20
"""Of contents; what many devices are sent alike at once counts once."""
MOST_MESSAGES: Final = 50_000
MANY: Final = 64
"""So many that were sent at once are kept together."""

DeviceKey = tuple[str, str]
"""User and device."""

_position: Final = attrgetter("position")


class _Sent:
    """What was sent at once."""

    __slots__ = ("_by_user", "news", "size")

    def __init__(self, news: NewMessages) -> None:
        self.news = news
        alike = {id(content): content for content in news.contents}
        self.size = sum(map(len, news.contents if len(news.contents) < MANY else alike.values()))
        self._by_user: dict[str, Sequence[int]] = {}

    def index(self) -> None:
        """Let the messages be found here."""
        users = [user_id for user_id, _, _ in self.news.recipients]
        self._by_user = dict(zip(users, zip(range(len(users)), strict=True), strict=True))
        if len(self._by_user) < len(users):
            by_user: dict[str, list[int]] = {}
            for index, user_id in enumerate(users):
                by_user.setdefault(user_id, []).append(index)
            self._by_user.update(by_user)

    def to(self, device: DeviceKey) -> Iterator[DeviceMessage]:
        """The messages to the device."""
        for index in self._by_user.get(device[0], ()):
            if self.news.recipients[index][1] == device[1]:
                yield self.news.at(index)

    def remove(self, device: DeviceKey, upto: int) -> None:
        """Those to the device up to that position are not found any more."""
        there = self._by_user.get(device[0])
        if there is not None:
            first, recipients = self.news.first, self.news.recipients
            self._by_user[device[0]] = [at for at in there if recipients[at][1] != device[1] or first + at > upto]


class RecentMessages:
    """What was sent to devices of late by this node: a few to one device each are found by their device, many that were sent at once
    by the request."""

    def __init__(self, streams: Streams, *, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._complete_from = streams.current()
        self._by_device: dict[DeviceKey, deque[DeviceMessage]] = {}
        self._many: deque[_Sent] = deque()
        self._order: deque[_Sent] = deque()
        self._number = 0
        self._bytes = 0
        streams.subscribe(self._hear, Topic.TO_DEVICE, Topic.DEVICES_GONE)
        streams.watch(self._heed_others)

    def since(self, device: DeviceKey, position: int) -> Sequence[DeviceMessage] | None:
        """All messages to the device after the position, in order; None if that reaches further back than is kept."""
        if position < self._complete_from:
            return None
        messages = [message for message in self._by_device.get(device, ()) if message.position > position]
        for sent in reversed(self._many):
            if sent.news.last <= position:
                break
            messages += [message for message in sent.to(device) if message.position > position]
        messages.sort(key=_position)
        return messages

    def forget(self, device: DeviceKey, first: int, upto: int) -> None:
        """The device has those from one position to another, and nothing before is known any more."""
        self._forget_few(device, upto)
        for sent in reversed(self._many):
            if sent.news.last < first:
                break
            sent.remove(device, upto)

    def _forget_few(self, device: DeviceKey, upto: int) -> None:
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
                    for sent in self._many:
                        sent.remove((change.user_id, device_id), sent.news.last)
            elif isinstance(change.detail, NewMessages):
                self._add(_Sent(change.detail))
            elif change.topic is Topic.TO_DEVICE:
                self._clear(change.position)
        while self._bytes > self._most_bytes or self._number > MOST_MESSAGES:
            self._remove_oldest()

    def _add(self, sent: _Sent) -> None:
        news = sent.news
        if len(news.contents) < MANY:
            for index, (user_id, device_id, _) in enumerate(news.recipients):
                self._by_device.setdefault((user_id, device_id), deque()).append(news.at(index))
        else:
            sent.index()
            self._many.append(sent)
        self._order.append(sent)
        self._number += len(news.contents)
        self._bytes += sent.size

    def _remove_oldest(self) -> None:
        sent = self._order.popleft()
        self._number -= len(sent.news.contents)
        self._bytes -= sent.size
        if self._many and self._many[0] is sent:
            self._many.popleft()
        else:
            for user_id, device_id, _ in sent.news.recipients:
                self._forget_few((user_id, device_id), sent.news.last)
        self._complete_from = max(self._complete_from, sent.news.last)

    def _heed_others(self, _after: int, upto: int) -> None:
        """Another node wrote: to whom is not known here."""
        self._clear(upto)

    def _clear(self, upto: int) -> None:
        self._by_device.clear()
        self._many.clear()
        self._order.clear()
        self._number = self._bytes = 0
        self._complete_from = max(self._complete_from, upto)
