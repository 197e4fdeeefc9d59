"""How many unread messages and highlights a user has in a room.

Nothing is written per member when a message comes (law: pay for what happened): events are flagged, and counts are those
of flagged events after the read marker. A count that was taken once is carried on by the events that arrive since, so an
open client costs no query a message. For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from federation.protocol.ids import UserID
from storage.events import EventFlag, EventRow
from storage.memberships import MembershipRow
from storage.receipts import ReceiptRow, ReceiptStore
from storage.streams import Change, Streams, Topic
from storage.timelines import TimelineStore

COUNTED_EVENTS = 64
"""Newest events of a room kept for carrying counts on."""


@dataclass(frozen=True, slots=True)
class Unread:
    """The numbers shown beside a room."""

    notifications: int
    highlights: int


@dataclass(slots=True)
class _Count:
    upto: int
    notifications: int
    highlights: int


class UnreadCounts:
    """Counts by user and room."""

    def __init__(self, timelines: TimelineStore, receipts: ReceiptStore, streams: Streams, *, capacity: int) -> None:
        """`capacity`: how many counts are kept."""
        self._timelines = timelines
        self._receipts = receipts
        self._streams = streams
        self._capacity = capacity
        self._counts: OrderedDict[tuple[str, int], _Count] = OrderedDict()
        self._recent: OrderedDict[int, list[EventRow]] = OrderedDict()
        self._complete_from: dict[int, int] = {}
        self._dropped_upto = 0
        streams.subscribe(self._hear)

    async def get_counts(self, user_id: UserID, rooms: Collection[MembershipRow]) -> Mapping[int, Unread]:
        """The counts of now in rooms that the user is joined to."""
        upto = self._streams.current()
        missing = [row for row in rooms if not self._carry_on((user_id, row.room_nid), upto)]
        if missing:
            marks = await self._read_marks(user_id, missing)
            counted = await self._timelines.get_unread_counts(user_id, marks, upto)
            for room_nid, (notifications, highlights) in counted.items():
                self._keep((user_id, room_nid), _Count(upto, notifications, highlights))
        found: dict[int, Unread] = {}
        for row in rooms:
            count = self._counts.get((user_id, row.room_nid))
            if count is not None:
                found[row.room_nid] = Unread(max(count.notifications, count.highlights), count.highlights)
        return found

    async def _read_marks(self, user_id: UserID, rooms: Sequence[MembershipRow]) -> dict[int, int]:
        """Up to which position the user has read each room: as far as receipts say, at least to their joining."""
        receipts = await self._receipts.get_receipts_of_user(user_id, [row.room_nid for row in rooms])
        marks: dict[int, int] = {}
        for row in rooms:
            read = [
                receipt.event_position
                for receipt in receipts.get(row.room_nid, [])
                if receipt.receipt_type in ("m.read", "m.read.private") and receipt.event_position is not None
            ]
            marks[row.room_nid] = max(read) if read else row.position
        return marks

    def _carry_on(self, key: tuple[str, int], upto: int) -> bool:
        count = self._counts.get(key)
        if count is None:
            return False
        self._counts.move_to_end(key)
        user_id, room_nid = key
        recent = self._recent.get(room_nid)
        if recent is None and count.upto < self._dropped_upto:
            return False
        if recent is not None and count.upto < upto:
            if count.upto < self._complete_from[room_nid]:
                return False
            for row in recent:
                if row.position is None or row.position <= count.upto or row.sender == user_id:
                    continue
                if row.flags & EventFlag.UNREAD:
                    count.notifications += 1
                if row.flags & (EventFlag.HIGHLIGHTS | EventFlag.MENTIONS_ROOM):
                    return False  # perhaps this user: count anew
        count.upto = upto
        return True

    def _keep(self, key: tuple[str, int], count: _Count) -> None:
        self._counts[key] = count
        if len(self._counts) > self._capacity:
            self._counts.popitem(last=False)

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, EventRow):
                self._remember(row, change.position)
            elif isinstance(row, ReceiptRow | MembershipRow):
                self._counts.pop((row.user_id, row.room_nid), None)
            elif change.topic in (Topic.REDACTED, Topic.EVENT):
                self._counts.clear()

    def _remember(self, row: EventRow, position: int) -> None:
        recent = self._recent.get(row.room_nid)
        if recent is None:
            recent = self._recent[row.room_nid] = []
            self._complete_from[row.room_nid] = position - 1
            if len(self._recent) > self._capacity:
                dropped, rows = self._recent.popitem(last=False)
                del self._complete_from[dropped]
                self._dropped_upto = max(self._dropped_upto, *(row.position or 0 for row in rows))
        recent.append(row)
        self._recent.move_to_end(row.room_nid)
        if len(recent) > COUNTED_EVENTS:
            dropped_row = recent.pop(0)
            self._complete_from[row.room_nid] = dropped_row.position or position
