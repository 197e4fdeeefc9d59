"""What one server has still to be told, and how it stands: the memory of the sender.

A server that keeps up has its events in `queue`. One that does not is behind: then only the rooms
are noted of which it has missed something, in the database too, and it catches up room by room.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from twisted.internet.interfaces import IDelayedCall

from federation.protocol.ids import ServerName
from federation.remote.transactions import Transaction
from federation.sender.refusals import is_to_device
from storage.federation.destinations import Backlog, ReceiptToSend

MAX_QUEUED: Final = 2000
"""Events in memory for a server: with more it is behind."""
MAX_EPHEMERAL: Final = 1000
"""Typing notices, receipts and presences in memory for a server, of each kind; then the oldest
go."""

SILENT_MS: Final = 8_000
"""A server is silent that did not answer for so long: a little less than most clients wait."""
SHORT_SILENCE_MS: Final = 20_000
"""As long as a server takes to start again, at most."""
LONGEST_SILENCE_MS: Final = 60_000
"""How long after a try that was waited for in vain other requests to the server are not tried."""
LONGEST_ABSENCE_MS: Final = 5_000
"""The same, after one that failed at once: who tries again loses no time, and a server that is
started again may be back."""


class QueuedEvent(msgspec.Struct, frozen=True):
    """An event that waits for its transaction."""

    position: int
    event_nid: int
    room_nid: int


class Pending(msgspec.Struct, frozen=True):
    """A transaction under way, and what is done when the other server has it."""

    transaction: Transaction
    parts: deque[Transaction]
    """What is still to be sent: all of it in one, or in several where the server has refused
    that."""
    rooms: Mapping[int, int] = msgspec.field(default_factory=dict)
    """Rooms that it tells of, and the position of the first event that was to be told."""
    users: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Users of whose devices it tells, with the first change."""
    to_device_upto: int | None = None
    receipts: Sequence[ReceiptToSend] = ()
    broken: deque[Transaction] = msgspec.field(default_factory=deque)
    """Parts at which the other server broke down, each one thing: they come last."""
    taken: set[str] = msgspec.field(default_factory=set)
    """Of which kinds it has taken something in since it was tried last (`refusals.kinds_of`)."""

    @property
    def is_split(self) -> bool:
        """It is being sent in parts."""
        return bool(self.parts) and self.parts[0] is not self.transaction

    def told_and_left(self) -> "tuple[Pending, Pending]":
        """What is done with, of events, messages to devices, and all else; and what is not, since
        some of the kind is left."""
        left = (*self.parts, *self.broken)
        edus = [edu for part in left for edu in part.edus]
        told = left_over = replace(self)
        for is_left, nothing in (
            (any(part.pdus for part in left), {"rooms": {}}),
            (any(map(is_to_device, edus)), {"to_device_upto": None}),
            (not all(map(is_to_device, edus)), {"users": {}, "receipts": ()}),
        ):
            if is_left:
                told = replace(told, **nothing)
            else:
                left_over = replace(left_over, **nothing)
        return told, left_over


class Destination(msgspec.Struct):
    """One server."""

    server: ServerName
    queue: deque[QueuedEvent] = msgspec.field(default_factory=deque)
    users: dict[str, int] = msgspec.field(default_factory=dict)
    """Users of whose devices there is something to tell, and the number of the first change."""
    receipts: OrderedDict[tuple[int, str, str], ReceiptToSend] = msgspec.field(
        default_factory=OrderedDict
    )
    """By room, user and thread."""
    notices: OrderedDict[tuple[str, str], bytes] = msgspec.field(default_factory=OrderedDict)
    """EDUs that nobody misses much, such as typing, by what they are about: only the latest is of
    interest."""
    presence: OrderedDict[str, Mapping[str, Any]] = msgspec.field(default_factory=OrderedDict)
    has_to_device: bool = False
    """Messages to devices wait, in the database."""

    is_behind: bool = False
    missed: dict[int, int] = msgspec.field(default_factory=dict)
    """Rooms of which it has missed something, and the position of the first event."""
    is_noted: bool = True
    """What it has missed stands in the database."""

    pending: Pending | None = None
    is_running: bool = False
    retry: IDelayedCall | None = None
    failing_since_ts: int | None = None
    """Since when it takes nothing: since it does not answer, or since it asks us to wait, whichever
    of these it does now."""
    tried_ts: int = 0
    is_silent: bool = False
    """The last try that failed took as long as people wait."""
    heard_ts: int = -1
    """When it last spoke to us."""
    in_vain_on_its_word: int = 0
    """How often, since it failed, it was tried because it had spoken, and did not answer."""
    given_up: int = 0
    """How many parts of transactions it has refused alone, since it took the last one."""
    breakdowns: int = 0
    """In how many tries, one after the other, it broke down at each thing that was tried alone, and
    took nothing in; it begins anew after one in which that was all there is."""
    pause_ms: int = 0
    asked_until_ts: int = 0
    """Until when it has asked, by its last answer, to be sent nothing; 0: that was another one, or
    none."""
    error: str | None = None

    @property
    def is_idle(self) -> bool:
        """Nothing is known of it that is worth keeping."""
        return not (
            self.is_running
            or self.is_behind
            or self.pending is not None
            or self.failing_since_ts is not None
            or self.given_up
            or self.has_news
        )

    @property
    def is_unreachable(self) -> bool:
        """The last try was not answered, or not as by a server that is in order. One that asked us
        to wait is."""
        return self.failing_since_ts is not None and not self.asked_until_ts

    @property
    def has_news(self) -> bool:
        """There is something to tell that is in no transaction yet."""
        return bool(
            self.queue
            or self.missed
            or self.users
            or self.receipts
            or self.notices
            or self.presence
            or self.has_to_device
        )

    def is_failing_at(self, now_ms: int) -> bool:
        """It could not be reached a moment ago, and has not spoken to us since. One that asked us
        to wait could be reached."""
        if not self.is_unreachable or self.heard_ts > self.tried_ts:
            return False
        return now_ms < self.tried_ts + min(
            self.pause_ms, LONGEST_SILENCE_MS if self.is_silent else LONGEST_ABSENCE_MS
        )

    def lowest(self) -> int | None:
        """The lowest position of what only memory knows; None if there is nothing."""
        if self.is_behind and self.is_noted:
            return None
        positions = [
            *self.users.values(),
            *(receipt.position for receipt in self.receipts.values()),
        ]
        if self.queue:
            positions.append(self.queue[0].position)
        if not self.is_noted:
            positions += self.missed.values()
        if self.pending is not None:
            positions += self.pending.users.values()
            positions += self.pending.rooms.values()
            positions += (receipt.position for receipt in self.pending.receipts)
        return min(positions, default=None)

    def add_receipt(self, receipt: ReceiptToSend) -> None:
        """The latest of a user in a room or thread takes the place of earlier ones."""
        _put(self.receipts, _key_of(receipt), receipt)

    def add_notice(self, key: tuple[str, str], edu: bytes) -> None:
        """The latest about something takes the place of earlier ones."""
        _put(self.notices, key, edu)

    def add_presence(self, user_id: str, presence: Mapping[str, Any]) -> None:
        """The latest of a user takes the place of earlier ones."""
        _put(self.presence, user_id, presence)

    def fall_behind(self) -> Backlog:
        """Of the events that wait, only the rooms are remembered. What is returned has to be noted
        in the database."""
        self.is_behind = True
        self.is_noted = False
        backlog = Backlog(users=dict(self.users), is_whole=True)
        for event in self.queue:
            self.missed.setdefault(event.room_nid, event.position)
        self.queue.clear()
        backlog.rooms.update(self.missed)
        if self.pending is not None:
            # it will be tried again as it is, but perhaps not by this process
            backlog.rooms.update(self.pending.rooms)
            backlog.users.update(self.pending.users)
        return backlog

    def give_up_pending(self) -> None:
        """The transaction under way is not tried any more: what was in it is told later, in another
        form."""
        if self.pending is None:
            return
        for room_nid, position in self.pending.rooms.items():
            self.missed[room_nid] = min(position, self.missed.get(room_nid, position))
        for user_id, stream_id in self.pending.users.items():
            self.users[user_id] = min(stream_id, self.users.get(user_id, stream_id))
        self.has_to_device = self.has_to_device or self.pending.to_device_upto is not None
        later, self.receipts = self.receipts, OrderedDict()
        for receipt in (*self.pending.receipts, *later.values()):
            self.add_receipt(receipt)
        self.pending = None


def _key_of(receipt: ReceiptToSend) -> tuple[int, str, str]:
    return receipt.room_nid, receipt.user_id, receipt.thread_id


def _put(entries: "OrderedDict[Any, Any]", key: object, value: object) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > MAX_EPHEMERAL:
        entries.popitem(last=False)
