"""The unsent data and the reachability of one destination, in the memory of the sender.

For a server that receives its transactions promptly, the events to send are in `queue`. Otherwise
the server is behind. Then the sender only records, in memory and in the database, the rooms in
which the server missed events. Later it sends the newest events room by room (`catch_up.py`).
"""

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from twisted.internet.interfaces import IDelayedCall

from federation.protocol.ids import ServerName
from federation.remote.transactions import FederationTransaction
from federation.sender.refused_items import is_to_device
from storage.federation.destinations import Backlog, ReceiptToSend

MAX_QUEUED: Final = 2000
"""Events in memory for a server. With more it is behind."""
MAX_EPHEMERAL: Final = 1000
"""Typing notifications, receipts and presence updates in memory for a server, of each kind. Beyond
it the oldest is dropped."""

NO_ANSWER_MS: Final = 8_000
"""A try without an answer for this long counts as unanswered. Most clients wait a little longer."""
RESTART_MS: Final = 20_000
"""Longest time of a server restart."""
NO_ANSWER_BACKOFF_MS: Final = 60_000
"""Time after an unanswered try in which other requests to the server are not tried."""
FAST_FAILURE_BACKOFF_MS: Final = 5_000
"""The same after a try that failed at once. Another try costs little then, and a server that was
restarted may be back."""


class QueuedEvent(msgspec.Struct, frozen=True):
    """An event that waits for a transaction."""

    position: int
    event_nid: int
    room_nid: int


class PendingTransaction(msgspec.Struct, frozen=True):
    """A transaction that is being sent, and what to record after the destination has accepted
    it."""

    transaction: FederationTransaction
    parts: deque[FederationTransaction]
    """Remaining parts: the complete transaction, or several if the destination refused it."""
    rooms: Mapping[int, int] = msgspec.field(default_factory=dict)
    """Rooms of its events, with the position of the first event that was to be sent."""
    users: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Users whose device list updates it holds, with the position of the first change."""
    to_device_upto: int | None = None
    receipts: Sequence[ReceiptToSend] = ()
    failing_parts: deque[FederationTransaction] = msgspec.field(default_factory=deque)
    """Single items on which the destination answered 500. They are tried last."""
    accepted_kinds: set[str] = msgspec.field(default_factory=set)
    """Kinds of items (`refusals.get_kinds`) that were accepted since the last try began."""

    @property
    def is_split(self) -> bool:
        """Whether it is being sent in parts."""
        return bool(self.parts) and self.parts[0] is not self.transaction

    def split_delivered(self) -> "tuple[PendingTransaction, PendingTransaction]":
        """Return the delivered and the undelivered share of events, to-device messages and others.

        A kind counts as undelivered if any of its items is left.
        """
        left = (*self.parts, *self.failing_parts)
        edus = [edu for part in left for edu in part.edus]
        delivered = left_over = replace(self)
        for is_left, cleared in (
            (any(part.pdus for part in left), {"rooms": {}}),
            (any(map(is_to_device, edus)), {"to_device_upto": None}),
            (not all(map(is_to_device, edus)), {"users": {}, "receipts": ()}),
        ):
            if is_left:
                delivered = replace(delivered, **cleared)
            else:
                left_over = replace(left_over, **cleared)
        return delivered, left_over


class Destination(msgspec.Struct):
    """One destination server."""

    server: ServerName
    queue: deque[QueuedEvent] = msgspec.field(default_factory=deque)
    users: dict[str, int] = msgspec.field(default_factory=dict)
    """Users with unsent device list updates, and the position of the first change."""
    receipts: OrderedDict[tuple[int, str, str], ReceiptToSend] = msgspec.field(
        default_factory=OrderedDict
    )
    """Receipts by room, user and thread."""
    ephemeral_edus: OrderedDict[tuple[str, str], bytes] = msgspec.field(default_factory=OrderedDict)
    """EDUs that may be lost, such as typing, by subject. Only the latest one is sent."""
    presence: OrderedDict[str, Mapping[str, Any]] = msgspec.field(default_factory=OrderedDict)
    has_to_device: bool = False
    """Whether to-device messages wait in the database."""

    is_behind: bool = False
    missed_rooms: dict[int, int] = msgspec.field(default_factory=dict)
    """Rooms in which it missed events, and the position of the first one."""
    is_backlog_stored: bool = True
    """Whether the database holds all that it missed."""

    pending: PendingTransaction | None = None
    is_running: bool = False
    retry: IDelayedCall | None = None
    failing_since_ts: int | None = None
    """Start of the present failure: since when it does not answer, or since when it asks us to
    wait."""
    last_attempt_ts: int = 0
    is_not_answering: bool = False
    """Whether the last failed try took as long as clients wait."""
    last_activity_ts: int = -1
    """Time of the last activity of the server towards us."""
    failed_after_activity: int = 0
    """Failed retries that the server's activity caused, since the failure began."""
    refused_parts: int = 0
    """Parts that it refused alone, since it accepted the last one."""
    failing_tries: int = 0
    """Consecutive tries in which it answered 500 to each item tried alone and accepted none.
    It starts again at 0 after a try that covered all items."""
    backoff_ms: int = 0
    retry_after_ts: int = 0
    """Time until which its last answer asked us to send nothing. 0: it did not ask so."""
    error: str | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing about the server is worth keeping."""
        return not (
            self.is_running
            or self.is_behind
            or self.pending is not None
            or self.failing_since_ts is not None
            or self.refused_parts
            or self.has_unsent
        )

    @property
    def is_unreachable(self) -> bool:
        """Whether the last try failed, other than by a request to wait."""
        return self.failing_since_ts is not None and not self.retry_after_ts

    @property
    def has_unsent(self) -> bool:
        """Whether there is unsent data outside the pending transaction."""
        return bool(
            self.queue
            or self.missed_rooms
            or self.users
            or self.receipts
            or self.ephemeral_edus
            or self.presence
            or self.has_to_device
        )

    def is_failing_at(self, now_ms: int) -> bool:
        """Return whether a recent try failed and the server was not active since.

        A server that asked us to wait is reachable.
        """
        if not self.is_unreachable or self.last_activity_ts > self.last_attempt_ts:
            return False
        return now_ms < self.last_attempt_ts + min(
            self.backoff_ms,
            NO_ANSWER_BACKOFF_MS if self.is_not_answering else FAST_FAILURE_BACKOFF_MS,
        )

    def get_lowest_unstored_position(self) -> int | None:
        """Return the lowest stream position of data that only memory holds, or None."""
        if self.is_behind and self.is_backlog_stored:
            return None
        positions = [
            *self.users.values(),
            *(receipt.position for receipt in self.receipts.values()),
        ]
        if self.queue:
            positions.append(self.queue[0].position)
        if not self.is_backlog_stored:
            positions += self.missed_rooms.values()
        if self.pending is not None:
            positions += self.pending.users.values()
            positions += self.pending.rooms.values()
            positions += (receipt.position for receipt in self.pending.receipts)
        return min(positions, default=None)

    def add_receipt(self, receipt: ReceiptToSend) -> None:
        """Add a receipt. It replaces an earlier one of the user in the room or thread."""
        _put(self.receipts, _key_of(receipt), receipt)

    def add_ephemeral_edu(self, key: tuple[str, str], edu: bytes) -> None:
        """Add an EDU that may be lost. It replaces an earlier one with this key."""
        _put(self.ephemeral_edus, key, edu)

    def add_presence(self, user_id: str, presence: Mapping[str, Any]) -> None:
        """Add a presence update. It replaces an earlier one of the user."""
        _put(self.presence, user_id, presence)

    def fall_behind(self) -> Backlog:
        """Replace the queued events by their rooms. The caller stores the result."""
        self.is_behind = True
        self.is_backlog_stored = False
        backlog = Backlog(users=dict(self.users), is_complete=True)
        for event in self.queue:
            self.missed_rooms.setdefault(event.room_nid, event.position)
        self.queue.clear()
        backlog.rooms.update(self.missed_rooms)
        if self.pending is not None:
            # it will be retried unchanged, but perhaps not by this process
            backlog.rooms.update(self.pending.rooms)
            backlog.users.update(self.pending.users)
        return backlog

    def requeue_pending(self) -> None:
        """Drop the pending transaction. The catch-up will send its content in another form."""
        if self.pending is None:
            return
        for room_nid, position in self.pending.rooms.items():
            self.missed_rooms[room_nid] = min(position, self.missed_rooms.get(room_nid, position))
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
