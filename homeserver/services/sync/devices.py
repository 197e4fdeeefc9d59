"""What /sync tells a device for end-to-end encryption: messages to it, changes of device lists,
what keys it has left.

A message to a device is removed when the device comes back with a token of after it: then it has it
for sure. Where more wait than one answer takes, the answer ends (in all its parts) at the last one
that it carries, and the next goes on there; after a first answer, the rest waits at later
positions.

spec: client-server-api#send-to-device-messaging, client-server-api#e2e-extensions-to-sync
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec

from federation.protocol.ids import DeviceID, UserID
from homeserver.api.requester import Requester
from homeserver.services.encryption.device_lists import DeviceLists
from homeserver.services.encryption.one_time_key_counts import KeyCountsInMemory
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.sync.recent_messages import Found, RecentMessages, read
from homeserver.services.sync.request import Range, SyncRequest
from storage.encryption.device_keys import KeyCounts
from storage.encryption.to_device import REMOVED_AT_ONCE, DeviceMessage, ToDeviceStore
from storage.engine.streams import Topic

NO_KEYS: Final = KeyCounts({}, ())
NO_LISTS: Final[Mapping[str, list[str]]] = {"changed": [], "left": []}
MESSAGES_AN_ANSWER: Final = 100
DEVICES_REMEMBERED: Final = 50_000
_position: Final = itemgetter(0)


class DeviceNews(msgspec.Struct, frozen=True, gc=False):
    """The parts of an answer that are the device's own."""

    messages: Sequence[DeviceMessage] = ()
    lists: Mapping[str, list[str]] = msgspec.field(default_factory=lambda: NO_LISTS)
    counts: KeyCounts = NO_KEYS

    @property
    def is_news(self) -> bool:
        """Whether the answer need not wait."""
        return bool(self.messages or self.lists["changed"] or self.lists["left"])


def as_list(messages: Iterable[DeviceMessage]) -> msgspec.Raw:
    """The events, encoded as one list."""
    return msgspec.Raw(b"[%b]" % b",".join([message.content for message in messages]))


def _count_upto(found: Sequence[Found], position: int) -> int:
    """How many of them are at or before that position."""
    return bisect_right(found, position, key=_position) if found else 0


class Waiting(NamedTuple):
    """Messages for an answer, and where it ends."""

    messages: Sequence[DeviceMessage]
    upto: int
    fetched: int | None = None
    """Where the messages end, if that is before the rest of the answer."""


class DeviceNewsReader:
    """Reads what is new for devices."""

    def __init__(
        self,
        to_device: ToDeviceStore,
        messages: RecentMessages,
        counts: KeyCountsInMemory,
        lists: DeviceLists,
        recent: RecentChanges,
    ) -> None:
        self._to_device = to_device
        self._messages = messages
        self._counts = counts
        self._lists = lists
        self._recent = recent
        # up to where nothing is kept any more for a device, as far as this node knows; true for a
        # later device of its id, too
        self._clean: OrderedDict[tuple[UserID, DeviceID], int] = OrderedDict()

    async def find_messages(self, request: SyncRequest, span: Range) -> Waiting:
        """The messages that wait for the device, as many as one answer takes."""
        device_id = request.caller.device_id
        if device_id is None:
            return Waiting((), span.upto)
        user_id = request.caller.user_id
        key = (user_id, device_id)
        clean = self._clean.get(key)
        if clean is not None and not self._recent.concerns_user(user_id, Topic.TO_DEVICE, clean):
            self._note_clean(
                key, span.upto
            )  # else the stretch to look at would grow with each answer
            return Waiting((), span.upto)
        fetched = None if request.since is None else request.since.to_device
        arrived = span.since if fetched is None else fetched
        limit = MESSAGES_AN_ANSWER
        # who has no token may have begun a session on another node, which is not heard of yet: what
        # was in memory for another session of the device is not for them
        known = None if clean is None or not span.since else self._messages.since(key, clean)
        if known is None:
            messages = await self._to_device.get_messages(user_id, device_id, 0, span.upto, limit)
            if messages and messages[0].position <= arrived:
                # the device has these: it came back with a token of after them
                await self._to_device.remove_messages(user_id, device_id, arrived)
                messages = await self._to_device.get_messages(
                    user_id, device_id, arrived, span.upto, limit
                )
            self._note_clean(key, arrived)
        else:
            has = await self._remove(key, known, arrived)
            messages = read(known[has : min(has + limit, _count_upto(known, span.upto))])
        if not messages:
            self._note_clean(key, span.upto)
            return Waiting((), span.upto)
        if len(messages) < limit:
            return Waiting(messages, span.upto)
        if request.since is not None and fetched is None:
            return Waiting(messages, messages[-1].position)
        # a first answer tells of rooms as they are now, so it cannot end earlier; its token says
        # which messages it has
        return Waiting(messages, span.upto, messages[-1].position)

    async def read(
        self, request: SyncRequest, span: Range, messages: Sequence[DeviceMessage]
    ) -> DeviceNews:
        """Everything for the device in that range."""
        caller = request.caller
        if caller.device_id is None:
            return DeviceNews()
        counts = await self._counts.get(caller.user_id, caller.device_id)
        if request.since is None:
            return DeviceNews(messages, counts=counts)
        lists = await self._lists.get_changes(caller.user_id, span.since, span.upto)
        return DeviceNews(messages, lists, counts)

    def nothing_waits(self, caller: Requester, span: Range) -> bool:
        """Whether no message waits for the device at the end of the stretch, none having come in
        it; False too where that is not known from memory."""
        if caller.device_id is None:
            return True
        key = (caller.user_id, caller.device_id)
        clean = self._clean.get(key)
        if clean is None or clean < span.since:
            return False
        if clean < span.upto:
            self._clean[key] = span.upto
            self._clean.move_to_end(key)
        return True

    async def get_counts(self, caller: Requester) -> KeyCounts:
        """What keys the device has left."""
        return (
            NO_KEYS
            if caller.device_id is None
            else await self._counts.get(caller.user_id, caller.device_id)
        )

    def known_counts(self, caller: Requester) -> KeyCounts | None:
        """The same as far as it is in memory."""
        return (
            NO_KEYS
            if caller.device_id is None
            else self._counts.find(caller.user_id, caller.device_id)
        )

    async def read_nothing_new(self, request: SyncRequest) -> DeviceNews:
        """For who has heard of everything: only what keys the device has left."""
        caller = request.caller
        if caller.device_id is None:
            return DeviceNews()
        key = (caller.user_id, caller.device_id)
        if request.since is not None:
            position = request.since.position
            clean = self._clean.get(key)
            known = None if clean is None else self._messages.since(key, clean)
            if known is not None:
                await self._remove(key, known, position)
            elif await self._to_device.get_messages(*key, 0, position, 1):
                await self._to_device.remove_messages(*key, position)
            self._note_clean(key, position)
        return DeviceNews(counts=await self._counts.get(*key))

    async def _remove(
        self, key: tuple[UserID, DeviceID], known: Sequence[Found], arrived: int
    ) -> int:
        """The device has those of the messages up to that position; how many these are."""
        has = _count_upto(known, arrived)
        if has:
            if has <= REMOVED_AT_ONCE:
                await self._to_device.remove_few_messages(*key, known[0][0], arrived)
            else:
                await self._to_device.remove_messages(*key, arrived)
            self._messages.forget(key, arrived)
            self._note_clean(key, arrived)
        return has

    def _note_clean(self, key: tuple[UserID, DeviceID], position: int) -> None:
        self._clean[key] = position
        self._clean.move_to_end(key)
        if len(self._clean) > DEVICES_REMEMBERED:
            self._clean.popitem(last=False)
