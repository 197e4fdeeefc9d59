"""The sections of /sync for one device: `to_device`, `device_lists`, and the counts of the device's
one-time keys.

A to-device message is removed when the device syncs with the token of the response that contained
the message, or with a later token. This confirms that the device has received the message. If more
messages are pending than fit into one response, all sections of the response end at the position of
its last message, and the next response continues there. An initial sync shows rooms as they are
now, so it cannot end at an earlier position. Instead, its token has a separate position for
to-device messages.

spec: client-server-api#send-to-device-messaging, client-server-api#e2e-extensions-to-sync
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec

from federation.protocol.ids import DeviceID, UserID
from homeserver.services.encryption.device_lists import DeviceLists
from homeserver.services.encryption.one_time_key_counts import OneTimeKeyCounts
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.sync.request import SyncRange, SyncRequest
from homeserver.services.sync.to_device_cache import CachedMessage, ToDeviceCache, make_messages
from storage.cache import LRU
from storage.encryption.device_keys import KeyCounts
from storage.encryption.to_device import DELETE_CHUNK, DeviceMessage, ToDeviceStore
from storage.engine.streams import Topic

NO_KEYS: Final = KeyCounts({}, ())
NO_LISTS: Final[Mapping[str, list[str]]] = {"changed": [], "left": []}
MESSAGES_PER_RESPONSE: Final = 100
MAX_DEVICES: Final = 50_000
_position: Final = itemgetter(0)


class DeviceSections(msgspec.Struct, frozen=True, gc=False):
    """The sections of a device in one response."""

    messages: Sequence[DeviceMessage] = ()
    lists: Mapping[str, list[str]] = msgspec.field(default_factory=lambda: NO_LISTS)
    counts: KeyCounts = NO_KEYS

    @property
    def has_changes(self) -> bool:
        """Whether anything is new, so that the request ends its wait."""
        return bool(self.messages or self.lists["changed"] or self.lists["left"])


def as_list(messages: Iterable[DeviceMessage]) -> msgspec.Raw:
    """Encode the messages as one JSON list."""
    return msgspec.Raw(b"[%b]" % b",".join([message.content for message in messages]))


def _count_upto(found: Sequence[CachedMessage], position: int) -> int:
    """Count the messages at or before the position."""
    return bisect_right(found, position, key=_position) if found else 0


class PendingMessages(NamedTuple):
    """The messages of a response, and the position at which the response ends."""

    messages: Sequence[DeviceMessage]
    upto: int
    fetched: int | None = None
    """The position at which the messages end, if the rest of the response ends later."""


class DeviceSectionReader:
    """Reads the sections of devices."""

    def __init__(
        self,
        *,
        to_device: ToDeviceStore,
        messages: ToDeviceCache,
        counts: OneTimeKeyCounts,
        lists: DeviceLists,
        recent: RecentChanges,
    ) -> None:
        self._to_device = to_device
        self._messages = messages
        self._counts = counts
        self._lists = lists
        self._recent = recent
        # the position up to which no message is stored for a device, as far as this node knows;
        # it holds for a later device with the same ID, too
        self._empty_upto: LRU[tuple[UserID, DeviceID], int] = LRU(max_entries=MAX_DEVICES)

    async def find_messages(self, request: SyncRequest, span: SyncRange) -> PendingMessages:
        """Return the pending messages of the device, as many as one response takes."""
        device_id = request.caller.device_id
        if device_id is None:
            return PendingMessages((), span.upto)
        user_id = request.caller.user_id
        key = (user_id, device_id)
        empty_upto = self._empty_upto.get(key)
        if empty_upto is not None and not self._recent.concerns_user(
            user_id, Topic.TO_DEVICE, empty_upto
        ):
            # otherwise the range to check would grow with each response
            self._empty_upto.put(key, span.upto)
            return PendingMessages((), span.upto)
        fetched = None if request.since is None else request.since.to_device
        arrived = span.since if fetched is None else fetched
        limit = MESSAGES_PER_RESPONSE
        # without a token the session may have begun on another node, unknown to this one yet: the
        # cache may hold messages for an earlier device with the same ID
        known = (
            None if empty_upto is None or not span.since else self._messages.since(key, empty_upto)
        )
        if known is None:
            messages = await self._to_device.get_messages(user_id, device_id, 0, span.upto, limit)
            if messages and messages[0].position <= arrived:
                # the device has these: it came back with a token from after them
                await self._to_device.remove_messages(user_id, device_id, arrived)
                messages = await self._to_device.get_messages(
                    user_id, device_id, arrived, span.upto, limit
                )
            self._empty_upto.put(key, arrived)
        else:
            received = await self._remove(key, known, arrived)
            messages = make_messages(
                known[received : min(received + limit, _count_upto(known, span.upto))]
            )
        if not messages:
            self._empty_upto.put(key, span.upto)
            return PendingMessages((), span.upto)
        if len(messages) < limit:
            return PendingMessages(messages, span.upto)
        if request.since is not None and fetched is None:
            return PendingMessages(messages, messages[-1].position)
        # an initial sync shows rooms as they are now, so it cannot end earlier; its token has the
        # position of the messages
        return PendingMessages(messages, span.upto, messages[-1].position)

    async def read(
        self, request: SyncRequest, span: SyncRange, messages: Sequence[DeviceMessage]
    ) -> DeviceSections:
        """Return all sections of the device for the range."""
        caller = request.caller
        if caller.device_id is None:
            return DeviceSections()
        counts = await self._counts.get(caller.user_id, caller.device_id)
        if request.since is None:
            return DeviceSections(messages, counts=counts)
        lists = await self._lists.get_changes(caller.user_id, span.since, span.upto)
        return DeviceSections(messages, lists, counts)

    async def read_nothing_new(self, request: SyncRequest) -> DeviceSections:
        """Return the sections of a device that is up to date: only the counts of its keys."""
        caller = request.caller
        if caller.device_id is None:
            return DeviceSections()
        key = (caller.user_id, caller.device_id)
        if request.since is not None:
            position = request.since.position
            empty_upto = self._empty_upto.get(key)
            known = None if empty_upto is None else self._messages.since(key, empty_upto)
            if known is not None:
                await self._remove(key, known, position)
            elif await self._to_device.get_messages(*key, 0, position, 1):
                await self._to_device.remove_messages(*key, position)
            self._empty_upto.put(key, position)
        return DeviceSections(counts=await self._counts.get(*key))

    async def _remove(
        self, key: tuple[UserID, DeviceID], known: Sequence[CachedMessage], arrived: int
    ) -> int:
        """Remove the messages that the device has received, up to the position, and return their
        number."""
        received = _count_upto(known, arrived)
        if received:
            if received <= DELETE_CHUNK:
                await self._to_device.remove_message_range(*key, known[0][0], arrived)
            else:
                await self._to_device.remove_messages(*key, arrived)
            self._messages.drop(key, arrived)
            self._empty_upto.put(key, arrived)
        return received
