"""The latest to-device messages, in memory: a device that keeps up gets them without a query.

The database stores each message too, until the device has received it or is deleted. Every write of
another node clears the cache, because the write may have added messages. Use this module only on
the reactor thread.

Laws:
- The messages of a send request enter the cache unsorted, so sending is cheap. They are sorted by
  recipient later, together with those of other requests. A request with `LARGE_REQUEST` messages or
  more is never sorted. Instead, the first read that looks through it builds an index by user for
  this request. The JSON of a message is built only for a response.
- For each device, the cache records a position. Messages up to this position were delivered, or
  were for a deleted device with the same ID. They are never returned again.
"""

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Final

from storage.encryption.to_device import DeviceMessage, DevicesDeleted, ToDeviceAdded
from storage.engine.streams import Change, Stage, Streams, Topic

MAX_BYTES: Final = 16 << 20
"""Size of all contents; the same content to many devices counts once."""
MAX_MESSAGES: Final = 50_000
MAX_DROPPED: Final = 50_000
LARGE_REQUEST: Final = 64
"""Messages of one request from which on it is not sorted by recipient."""

MAX_UNSORTED: Final = 32
"""Requests that may wait to be sorted, so that no reader waits for long."""

DeviceKey = tuple[str, str]
"""User and device."""

CachedMessage = tuple[int, str, ToDeviceAdded]
"""The position of a message, the ID of its device, and the request that it came with."""

_position: Final = itemgetter(0)
_user_id: Final = itemgetter(0)


def make_messages(found: Iterable[CachedMessage]) -> list[DeviceMessage]:
    """Make the messages."""
    # the events are built as by `make_event`
    return [
        DeviceMessage(position, b"%b%b}" % (added.prefix, added.contents[position - added.first]))
        for position, _, added in found
    ]


class _SentRequest:
    """The messages of one request."""

    __slots__ = ("_by_user", "added", "last", "size")

    def __init__(self, added: ToDeviceAdded) -> None:
        self.added = added
        self.last = added.last
        self.size = 0
        before: bytes | None = None
        for content in added.contents:
            if content is not before:
                self.size += len(content)
                before = content
        self._by_user: dict[str, Sequence[int]] | None = None

    def to(self, user_id: str) -> Sequence[int]:
        """Return the indexes of the messages for devices of the user."""
        if self._by_user is None:
            self._by_user = self._index()
        return self._by_user.get(user_id, ())

    def _index(self) -> dict[str, Sequence[int]]:
        """Return the indexes of the messages, by user."""
        users = list(map(_user_id, self.added.recipients))
        found: dict[str, Sequence[int]] = dict(
            zip(users, zip(range(len(users)), strict=True), strict=True)
        )
        if len(found) < len(users):
            by_user: dict[str, list[int]] = {}
            for index, user_id in enumerate(users):
                by_user.setdefault(user_id, []).append(index)
            found.update(by_user)
        return found


class ToDeviceCache:
    """The latest messages that this node sent to devices."""

    def __init__(self, *, streams: Streams, max_bytes: int = MAX_BYTES) -> None:
        self._streams = streams
        self._max_bytes = max_bytes
        self._complete_from = streams.current()
        self._by_user: defaultdict[str, list[CachedMessage]] = defaultdict(list)
        """The messages of small requests by user, in order."""
        self._unsorted: list[ToDeviceAdded] = []
        """Small requests that are not sorted yet, in order."""
        self._large: deque[_SentRequest] = deque()
        self._order: deque[_SentRequest] = deque()
        self._number = 0
        self._bytes = 0
        self._dropped_upto: dict[DeviceKey, int] = {}
        """Not an `LRU`: without its entry, a device would get delivered messages again."""
        streams.subscribe(
            self._on_changes, Topic.TO_DEVICE, Topic.DEVICES_DELETED, stage=Stage.CACHE
        )
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    def since(self, device: DeviceKey, position: int) -> Sequence[CachedMessage] | None:
        """Return all messages to the device after the position, in order; None if some are not in
        memory."""
        if position < self._complete_from:
            return None
        if self._unsorted:
            self._sort()
        user_id, device_id = device
        after = max(position, self._dropped_upto.get(device, 0))
        messages: list[CachedMessage] = []
        of_user = self._by_user.get(user_id)
        if of_user is not None and of_user[-1][0] > after:
            newer = of_user[bisect_right(of_user, after, key=_position) :]
            messages = [found for found in newer if found[1] == device_id]
        if not self._large:
            return messages
        for sent in reversed(self._large):
            if sent.last <= after:
                break
            added = sent.added
            for index in sent.to(user_id):
                if added.recipients[index][1] == device_id and added.first + index > after:
                    messages.append((added.first + index, device_id, added))
        messages.sort()  # positions are unique
        return messages

    def drop(self, device: DeviceKey, upto: int) -> None:
        """Drop the messages to the device up to the position: it has received them."""
        # a token may be from after the head
        self._dropped_upto[device] = max(
            min(upto, self._streams.current()), self._dropped_upto.get(device, 0)
        )
        if len(self._dropped_upto) > MAX_DROPPED:
            self._dropped_upto = {
                key: after
                for key, after in self._dropped_upto.items()
                if after > self._complete_from
            }
            if len(self._dropped_upto) > MAX_DROPPED // 2:
                self._clear(self._streams.current())

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change.detail, DevicesDeleted) and change.user_id is not None:
                for device_id in change.detail.device_ids:
                    self.drop((change.user_id, device_id), change.position)
            elif isinstance(change.detail, ToDeviceAdded):
                self._add(change.detail)
            elif change.topic is Topic.TO_DEVICE:
                self._clear(change.position)
        while self._bytes > self._max_bytes or self._number > MAX_MESSAGES:
            self._remove_oldest()

    def _add(self, added: ToDeviceAdded) -> None:
        sent = _SentRequest(added)
        number = len(added.contents)
        if number < LARGE_REQUEST:
            self._unsorted.append(added)
            if len(self._unsorted) >= MAX_UNSORTED:
                self._sort()
        else:
            self._large.append(sent)
        self._order.append(sent)
        self._number += number
        self._bytes += sent.size

    def _sort(self) -> None:
        by_user = self._by_user
        for added in self._unsorted:
            for position, (user_id, device_id, _) in enumerate(added.recipients, added.first):
                by_user[user_id].append((position, device_id, added))
        self._unsorted.clear()

    def _remove_oldest(self) -> None:
        self._sort()
        sent = self._order.popleft()
        self._number -= len(sent.added.contents)
        self._bytes -= sent.size
        if self._large and self._large[0] is sent:
            self._large.popleft()
        else:
            for user_id in set(map(_user_id, sent.added.recipients)):
                of_user = self._by_user[user_id]
                del of_user[: bisect_right(of_user, sent.last, key=_position)]
                if not of_user:
                    del self._by_user[user_id]
        self._complete_from = max(self._complete_from, sent.last)

    def _on_remote_write(self, _after: int, upto: int) -> None:
        """Clear the cache: another node wrote, and the recipients are not known here."""
        self._clear(upto)

    def _clear(self, upto: int) -> None:
        self._by_user.clear()
        self._unsorted.clear()
        self._large.clear()
        self._order.clear()
        self._dropped_upto.clear()
        self._number = self._bytes = 0
        self._complete_from = max(self._complete_from, upto)
