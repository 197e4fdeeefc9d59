"""How many unread messages and highlights a user has in a room, and in each of its threads.

Nothing is written per member when a message comes (law: pay for what happened): events are flagged, and counts are those
of flagged events after the read marker. A count that was taken once is carried on by the events that arrive since, so an
open client costs no query a message. For the reactor thread.

spec: client-server-api#receiving-notifications, client-server-api#threading
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.past_memberships import PastMemberships
from federation.rooms.room_events import RoomEvents, StoredEvent
from homeserver.services.mentions import called_users, thread_of
from storage.events import EventFlag, EventRow
from storage.memberships import MembershipRow
from storage.receipts import UNTHREADED, ReceiptRow, ReceiptStore
from storage.streams import Change, Streams, Topic
from storage.timelines import Flagged, ReadUpTo, TimelineStore

COUNTED_EVENTS: Final = 64
"""Newest counted events of a room kept for carrying counts on."""
ROOMS_REMEMBERED: Final = 20_000
"""Of how many rooms those are kept."""
MAIN_THREAD: Final = "main"
REDACTION: Final = "m.room.redaction"
_LOOKED_AT: Final = int(EventFlag.THREAD | EventFlag.HIGHLIGHTS)
"""Of events with these flags one has to know more than the flags, to count them."""
_position = attrgetter("position")
READ_TYPES: Final = frozenset({"m.read", "m.read.private"})


class Unread(msgspec.Struct, frozen=True, gc=False):
    """The numbers shown beside a room or a thread."""

    notifications: int
    highlights: int


class RoomUnread(msgspec.Struct, frozen=True, gc=False):
    """The numbers of a room: of its main timeline, and of each thread (by its root) that has any."""

    main: Unread
    threads: Mapping[str, Unread]

    @property
    def total(self) -> Unread:
        """Of the room as a whole, for clients that know of no threads."""
        parts = (self.main, *self.threads.values())
        return Unread(sum(part.notifications for part in parts), sum(part.highlights for part in parts))


@dataclass(slots=True)
class _Numbers:
    notifications: int = 0
    highlights: int = 0

    def add(self, is_highlight: bool) -> None:
        self.notifications += 1
        self.highlights += is_highlight


@dataclass(slots=True)
class _Count:
    upto: int
    ignored: Set[str]
    main: _Numbers
    threads: dict[str, _Numbers] = field(default_factory=dict)

    def add(self, thread: str | None, is_highlight: bool) -> None:
        numbers = self.main if thread is None else self.threads.setdefault(thread, _Numbers())
        numbers.add(is_highlight)

    def freeze(self) -> RoomUnread:
        threads = {root: Unread(each.notifications, each.highlights) for root, each in self.threads.items()}
        return RoomUnread(Unread(self.main.notifications, self.main.highlights), threads)


@dataclass(slots=True)
class _Recent:
    complete_from: int
    """Every counted event after this position is in the list."""
    events: list[Flagged] = field(default_factory=list)
    """Oldest first."""

    def after(self, position: int) -> Sequence[Flagged]:
        """Those that came after the position."""
        return self.events[bisect_right(self.events, position, key=_position) :]


class UnreadCounts:
    """Counts by user and room."""

    def __init__(
        self,
        timelines: TimelineStore,
        receipts: ReceiptStore,
        events: RoomEvents,
        past: PastMemberships,
        streams: Streams,
        *,
        capacity: int,
    ) -> None:
        """`capacity`: how many counts are kept."""
        self._timelines = timelines
        self._receipts = receipts
        self._events = events
        self._past = past
        self._streams = streams
        self._capacity = capacity
        self._counts: OrderedDict[tuple[str, int], _Count] = OrderedDict()
        self._recent: OrderedDict[int, _Recent] = OrderedDict()
        self._dropped_upto = streams.current()
        self._changes_heard = 0
        streams.subscribe(self._hear)
        streams.watch(self._heed_others)

    async def get_counts(
        self, user_id: UserID, rooms: Collection[MembershipRow], ignored: Set[str] = frozenset()
    ) -> Mapping[int, RoomUnread]:
        """The counts of now in rooms that the user is joined to. What `ignored` users send does not count."""
        upto = self._streams.current()
        known = await self._events.get_events(self._to_look_at(user_id, rooms))
        found: dict[int, RoomUnread] = {}
        missing: list[MembershipRow] = []
        for row in rooms:
            count = self._carry_on((user_id, row.room_nid), upto, ignored, known)
            if count is None:
                missing.append(row)
            else:
                found[row.room_nid] = count.freeze()
        if missing:
            heard = self._changes_heard
            for room_nid, count in (await self._count(user_id, missing, upto, ignored)).items():
                found[room_nid] = count.freeze()
                if heard == self._changes_heard:  # else it may be of before a receipt or redaction that came meanwhile
                    self._keep((user_id, room_nid), count)
        return found

    async def _count(
        self, user_id: UserID, rooms: Sequence[MembershipRow], upto: int, ignored: Set[str]
    ) -> dict[int, _Count]:
        marks = await self._read_marks(user_id, rooms)
        rows = await self._timelines.get_unread(
            user_id, {nid: ReadUpTo(mark.everything, mark.main) for nid, mark in marks.items()}, upto, ignored
        )
        known = await self._events.get_events(event.event_nid for row in rows.values() for event in row.to_look_at)
        counts: dict[int, _Count] = {}
        for room_nid, row in rows.items():
            count = counts[room_nid] = _Count(upto, ignored, _Numbers(row.unread, row.calls))
            mark = marks[room_nid]
            for event in row.to_look_at:
                stored = known.get(event.event_nid)
                thread = thread_of(stored.event) if stored is not None and event.flags & EventFlag.THREAD else None
                if stored is not None and event.position > mark.of_thread(thread):
                    count.add(thread, _is_highlight(event.flags, stored, user_id))
        return counts

    async def _read_marks(self, user_id: UserID, rooms: Sequence[MembershipRow]) -> "dict[int, _Mark]":
        """Up to which positions the user has read each room: as far as receipts say, at least to their joining."""
        receipts = await self._receipts.get_receipts_of_user(user_id, [row.room_nid for row in rooms])
        marks: dict[int, _Mark] = {}
        for row in rooms:
            mark = marks[row.room_nid] = _Mark(await self._past.joined_since(row))
            for receipt in receipts.get(row.room_nid, []):
                if receipt.receipt_type in READ_TYPES and receipt.event_position is not None:
                    mark.move(receipt.thread_id, receipt.event_position)
        return marks

    def _to_look_at(self, user_id: UserID, rooms: Iterable[MembershipRow]) -> list[int]:
        """The new events that one has to look at to carry the counts on."""
        nids: list[int] = []
        for row in rooms:
            count = self._counts.get((user_id, row.room_nid))
            recent = self._recent.get(row.room_nid)
            if count is not None and recent is not None and count.upto >= recent.complete_from:
                nids += [event.event_nid for event in recent.after(count.upto) if event.flags & _LOOKED_AT]
        return nids

    def _carry_on(
        self, key: tuple[str, int], upto: int, ignored: Set[str], known: Mapping[int, StoredEvent]
    ) -> _Count | None:
        """The count, brought up to the position; None where it has to be taken anew."""
        count = self._counts.get(key)
        if count is None or count.ignored != ignored:
            return None
        user_id, room_nid = key
        recent = self._recent.get(room_nid)
        if count.upto < (self._dropped_upto if recent is None else recent.complete_from):
            return None
        self._counts.move_to_end(key)
        news = [] if recent is None else [event for event in recent.after(count.upto) if event.position <= upto]
        if any(event.flags & _LOOKED_AT and event.event_nid not in known for event in news):
            return None
        for event in news:
            if event.sender != user_id and event.sender not in ignored:
                stored = known.get(event.event_nid)
                thread = thread_of(stored.event) if stored is not None and event.flags & EventFlag.THREAD else None
                count.add(thread, _is_highlight(event.flags, stored, user_id))
        count.upto = max(count.upto, upto)
        return count

    def _keep(self, key: tuple[str, int], count: _Count) -> None:
        self._counts[key] = count
        self._counts.move_to_end(key)
        if len(self._counts) > self._capacity:
            self._counts.popitem(last=False)

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, EventRow):
                self._remember(row, change.position)
            elif isinstance(row, ReceiptRow | MembershipRow):
                self._changes_heard += 1
                self._counts.pop((row.user_id, row.room_nid), None)
            elif change.topic in (Topic.EVENT, Topic.RECEIPT, Topic.MEMBERSHIP) or (
                change.topic is Topic.REDACTED and row is None
            ):
                self._heed_others(change.position, change.position)

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another node wrote: in which room is not known here."""
        self._changes_heard += 1
        self._counts.clear()

    def _remember(self, row: EventRow, position: int) -> None:
        if row.type == REDACTION:
            # what it took away may have been counted
            self._changes_heard += 1
            self._forget_before(row.room_nid, position)
        elif row.flags & EventFlag.UNREAD:
            recent = self._recent.get(row.room_nid)
            if recent is None:
                recent = self._forget_before(row.room_nid, self._dropped_upto)
            self._recent.move_to_end(row.room_nid)
            recent.events.append(Flagged(row.event_nid, position, row.sender, row.flags))
            if len(recent.events) > COUNTED_EVENTS:
                recent.complete_from = recent.events.pop(0).position

    def _forget_before(self, room_nid: int, position: int) -> _Recent:
        recent = self._recent[room_nid] = _Recent(position)
        self._recent.move_to_end(room_nid)
        if len(self._recent) > ROOMS_REMEMBERED:
            _, dropped = self._recent.popitem(last=False)
            last = dropped.events[-1].position if dropped.events else dropped.complete_from
            self._dropped_upto = max(self._dropped_upto, last)
        return recent


@dataclass(slots=True)
class _Mark:
    """Up to which positions a room is read."""

    everything: int
    main_only: int = 0
    threads: dict[str, int] = field(default_factory=dict)

    @property
    def main(self) -> int:
        return max(self.everything, self.main_only)

    def of_thread(self, root: str | None) -> int:
        return self.main if root is None else max(self.everything, self.threads.get(root, 0))

    def move(self, thread_id: str, position: int) -> None:
        if thread_id == UNTHREADED:
            self.everything = max(self.everything, position)
        elif thread_id == MAIN_THREAD:
            self.main_only = max(self.main_only, position)
        else:
            self.threads[thread_id] = max(self.threads.get(thread_id, 0), position)


def _is_highlight(flags: int, stored: StoredEvent | None, user_id: str) -> bool:
    if flags & EventFlag.MENTIONS_ROOM:
        return True
    return bool(flags & EventFlag.HIGHLIGHTS) and stored is not None and user_id in called_users(stored.event)
