"""The number of unread messages and highlights of a user in a room and in each of its threads.

A new message does not write a row for each member. Instead the event has push flags, and a user
has a push action row only if their actions differ from what the flags and the user's notification
level give. A count combines the flags and rows of the events that the user has not read
(docs/developers/push.md). Cached counts are updated with the events that arrive later, usually
without a query. Use this module only on the reactor thread.

spec: client-server-api#receiving-notifications, client-server-api#threading
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from operator import attrgetter
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.events import StoredEvent
from federation.rooms.history.past_memberships import PastMemberships
from federation.rooms.timelines import count_upto
from federation.rooms.visibility import VisibleEvent
from homeserver.services.push.user_rules import UserRuleCache
from storage.cache import LRU
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventFlag, EventRow, EventSummary
from storage.push.event_push_actions import (
    HIGHLIGHTED,
    MAIN,
    EventPushActionStore,
    NotifiedEvent,
    ReadPositions,
    get_default_outcome,
)
from storage.push.push_rule_history import ALL, PushRuleHistory, PushRuleSpan
from storage.retention.purging import PurgedMessages
from storage.rooms.memberships import MembershipRow
from storage.rooms.receipts import UNTHREADED, ReceiptRow, ReceiptStore, threads_read_upto
from storage.rooms.rooms import RoomStore

COUNTED: Final = EventFlag.NOTIFIES | EventFlag.HAS_PUSH_ACTIONS
"""Flags of events that may count."""
COUNTED_EVENTS: Final = 64
"""The newest counted events of a room that are cached to update counts."""
MAX_ROOMS: Final = 20_000
"""Rooms whose newest counted events are cached."""
REDACTION: Final = "m.room.redaction"
_type = attrgetter("event.type")
TOPICS: Final = (
    Topic.EVENT,
    Topic.RECEIPT,
    Topic.MEMBERSHIP,
    Topic.REDACTED,
    Topic.PURGED,
    Topic.PARTIAL_STATE,
)
READ_TYPES: Final = frozenset({"m.read", "m.read.private"})


class OwnReceipts(msgspec.Struct, frozen=True):
    """A user's own receipts in rooms, if they were read together with those of others."""

    by_room: Mapping[int, Sequence[ReceiptRow]]
    """All own receipts of each room in it."""
    changes: int
    """The value of `UnreadCounts.changes` before they were read, so that no announced receipt is
    missing."""


class Unread(msgspec.Struct, frozen=True, gc=False):
    """The unread numbers of a room or a thread."""

    notifications: int
    highlights: int


class RoomUnread(msgspec.Struct, frozen=True, gc=False):
    """The unread numbers of a room: of its main timeline, and of each thread with any, by thread
    root."""

    main: Unread
    threads: Mapping[str, Unread]

    @property
    def total(self) -> Unread:
        """The numbers of the complete room, for clients without threads."""
        if not self.threads:
            return self.main
        parts = (self.main, *self.threads.values())
        return Unread(
            sum(part.notifications for part in parts), sum(part.highlights for part in parts)
        )


NOTHING: Final = RoomUnread(Unread(0, 0), {})


class _Numbers(msgspec.Struct, gc=False):
    notifications: int = 0
    highlights: int = 0


class _Count(msgspec.Struct, gc=False):
    upto: int
    ignored: Set[str]
    threads: dict[str, _Numbers] = {}

    def freeze(self) -> RoomUnread:
        main = self.threads.get(MAIN)
        if len(self.threads) == (main is not None):
            return (
                NOTHING
                if main is None
                else RoomUnread(Unread(main.notifications, main.highlights), {})
            )
        numbers = {
            thread: Unread(each.notifications, each.highlights)
            for thread, each in self.threads.items()
        }
        return RoomUnread(numbers.pop(MAIN, NOTHING.main), numbers)


class _Counted(msgspec.Struct, frozen=True, gc=False):
    position: int
    sender: str
    flags: int
    thread: str


class _Recent(msgspec.Struct, gc=False):
    complete_from: int
    """Every counted event after this position is in the list."""
    events: list[_Counted] = []
    """The newest counted events, oldest first."""

    def after(self, position: int, upto: int) -> list[_Counted]:
        newer = self.events[count_upto(self.events, position) :]
        return newer[: count_upto(newer, upto)] if newer else newer


def has_hidden_redaction(arrived: Collection[StoredEvent], shown: Iterable[VisibleEvent]) -> bool:
    """Return whether a redaction among the arrivals is not shown, because its sender is ignored:
    the redacted event may have been counted."""
    if REDACTION not in map(_type, arrived):
        return False
    redactions = {event.nid for event in arrived if event.event.type == REDACTION}
    return not redactions <= {seen.event.nid for seen in shown}


class UnreadCounts:
    """Counts by user and room.

    No `StreamCache`: each count has its own position, and newer events are added to it on read.
    """

    def __init__(
        self,
        *,
        outcomes: EventPushActionStore,
        receipts: ReceiptStore,
        rooms: RoomStore,
        past_memberships: PastMemberships,
        rules: UserRuleCache,
        streams: Streams,
        capacity: int,
    ) -> None:
        """`capacity`: the number of cached counts."""
        self._outcomes = outcomes
        self._receipts = receipts
        self._rooms = rooms
        self._past_memberships = past_memberships
        self._rules = rules
        self._streams = streams
        self._counts: LRU[tuple[str, int], _Count] = LRU(max_entries=capacity)
        self._recent: LRU[int, _Recent] = LRU(max_entries=MAX_ROOMS, on_remove=self._on_evicted)
        self._dropped_upto = streams.current()
        self._changes = 0
        """Incremented whenever a count may change other than by new events."""
        self._purged: tuple[tuple[int, int], Mapping[int, int]] | None = None
        """The last result of `purged_since`, with its arguments."""
        streams.subscribe(self._on_changes, *TOPICS, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    @property
    def cache(self) -> LRU[tuple[str, int], _Count]:
        """The counts by user and room, for metrics."""
        return self._counts

    @property
    def changes(self) -> int:
        """A number that changes whenever data read before, such as receipts, may be outdated."""
        return self._changes

    async def get_counts(
        self,
        user_id: UserID,
        rooms: Collection[MembershipRow],
        ignored: Set[str] = frozenset(),
        own: OwnReceipts | None = None,
    ) -> Mapping[int, RoomUnread]:
        """Return the current counts of rooms that the user is joined to, without events of
        `ignored` users.

        `own`: receipts that were read before; not read again if nothing has changed since.
        """
        history = (await self._rules.of_user(user_id)).history
        room_ids = await self._room_ids(rooms) if history.changes else {}
        # read together: no change after `upto` may be missed
        upto, changes = self._streams.current(), self._changes
        cached = self._get_cached(user_id, rooms, upto, ignored)
        after = {
            nid: count.upto
            for nid, (count, newer) in cached.items()
            if newer and _have_outcomes(newer)
        }
        outcomes: Mapping[int, int] = {}
        if after:
            outcomes = await self._outcomes.get_outcomes(user_id, after)
            # other counts may have been updated meanwhile
            cached = self._get_cached(user_id, rooms, upto, ignored, after)
        found: dict[int, RoomUnread] = {}
        missing: list[MembershipRow] = []
        for row in rooms:
            known = cached.get(row.room_nid)
            if known is None:
                missing.append(row)
                continue
            count, newer = known
            if newer:
                _add_events(
                    user_id, count, newer, history, room_ids.get(row.room_nid, ""), outcomes
                )
            count.upto = max(count.upto, upto)
            found[row.room_nid] = count.freeze()
        if missing:
            for room_nid, count in (
                await self._count(user_id, missing, upto, history, room_ids, ignored, own)
            ).items():
                found[room_nid] = count.freeze()
                # otherwise a receipt or redaction came meanwhile, and the count may be outdated
                if changes == self._changes:
                    self._counts.put((user_id, room_nid), count)
        return found

    def update_cached(self, user_id: UserID, room_nid: int, ignored: Set[str]) -> RoomUnread | None:
        """Return the current count of one room from the cache and the events since. None if there
        is no cached count, or if push actions of messages differ for this user."""
        rules = self._rules.find_cached(user_id)
        if rules is None or rules.history.changes:
            return None
        upto = self._streams.current()
        known = self._get_cached_count(user_id, room_nid, upto, ignored)
        if known is None:
            return None
        count, newer = known
        if newer:
            if _have_outcomes(newer):
                return None
            _add_events(user_id, count, newer, rules.history, "", {})
        count.upto = max(count.upto, upto)
        return count.freeze()

    async def get_events(
        self,
        user_id: UserID,
        rooms: Collection[MembershipRow],
        ignored: Set[str],
        *,
        after: int,
        limit: int,
    ) -> Mapping[int, list[NotifiedEvent]]:
        """Return the newest counted events of each room after a position, newest first. Two reads,
        with statements for each room."""
        history = (await self._rules.of_user(user_id)).history
        room_ids = await self._room_ids(rooms) if history.changes else {}
        ranges = await self._find_unread_ranges(
            user_id, rooms, self._streams.current(), history, room_ids
        )
        return await self._outcomes.get_unread(user_id, ranges, ignored, after=after, limit=limit)

    async def purged_since(self, position: int) -> Mapping[int, int]:
        """Return by room the position of the last message that any node purged after `position` and
        that may have been counted. Cached until the stream moves on."""
        asked = (position, self._streams.current())
        known = self._purged
        if known is None or known[0] != asked:
            known = self._purged = asked, await self._outcomes.get_purged_since(position)
        return known[1]

    async def get_read_positions(
        self, user_id: UserID, rooms: Collection[MembershipRow], own: OwnReceipts | None = None
    ) -> Mapping[int, ReadPositions]:
        """Return up to which positions the user has read each room: by receipts, and at least up to
        their join."""
        room_nids = [row.room_nid for row in rooms]
        if (
            own is not None
            and own.changes == self._changes
            and own.by_room.keys() >= set(room_nids)
        ):
            receipts = own.by_room
        else:
            receipts = await self._receipts.get_receipts_of_user(user_id, room_nids)
        positions: dict[int, ReadPositions] = {}
        for row in rooms:
            everything = await self._past_memberships.get_joined_since(row)
            threads: dict[str, int] = {}
            found = [
                each for each in receipts.get(row.room_nid, ()) if each.receipt_type in READ_TYPES
            ]
            for receipt in found:
                if receipt.event_position is None:
                    continue
                if receipt.thread_id == UNTHREADED:
                    everything = max(everything, receipt.event_position)
                else:
                    threads[receipt.thread_id] = max(
                        threads.get(receipt.thread_id, 0), receipt.event_position
                    )
            positions[row.room_nid] = ReadPositions(everything, threads, threads_read_upto(found))
        return positions

    async def _count(
        self,
        user_id: UserID,
        rooms: Sequence[MembershipRow],
        upto: int,
        history: PushRuleHistory,
        room_ids: Mapping[int, str],
        ignored: Set[str],
        own: OwnReceipts | None,
    ) -> dict[int, _Count]:
        ranges = await self._find_unread_ranges(user_id, rooms, upto, history, room_ids, own)
        counted = await self._outcomes.get_counts(user_id, ranges, ignored)
        counts: dict[int, _Count] = {}
        for row in rooms:
            count = counts[row.room_nid] = _Count(upto, ignored)
            for thread in counted.get(row.room_nid, ()):
                count.threads[thread.thread] = _Numbers(thread.notifications, thread.highlights)
        return counts

    async def _find_unread_ranges(
        self,
        user_id: UserID,
        rooms: Collection[MembershipRow],
        upto: int,
        history: PushRuleHistory,
        room_ids: Mapping[int, str],
        own: OwnReceipts | None = None,
    ) -> dict[int, tuple[ReadPositions, Sequence[PushRuleSpan]]]:
        """Return the rooms that may have unread events, with the read positions, and the
        notification levels that applied after them."""
        return {
            room_nid: (read, history.spans(room_ids.get(room_nid, ""), read.everything, upto))
            for room_nid, read in (await self.get_read_positions(user_id, rooms, own)).items()
            if read.everything < upto
        }

    async def _room_ids(self, rooms: Collection[MembershipRow]) -> Mapping[int, str]:
        """Return the room IDs in lower case, as the history has them."""
        found = await self._rooms.get_rooms_by_nid({row.room_nid for row in rooms})
        return {nid: room.room_id.lower() for nid, room in found.items()}

    def _get_cached(
        self,
        user_id: UserID,
        rooms: Collection[MembershipRow],
        upto: int,
        ignored: Set[str],
        known_after: Mapping[int, int] | None = None,
    ) -> dict[int, tuple[_Count, Sequence[_Counted]]]:
        """Return the cached counts with all events since. Counts whose later events are not known
        are missing.

        `known_after`: by room the position after which the user's push actions are known; None if
        that does not matter yet.
        """
        cached: dict[int, tuple[_Count, Sequence[_Counted]]] = {}
        for row in rooms:
            room_nid = row.room_nid
            known = self._get_cached_count(user_id, room_nid, upto, ignored)
            if known is None:
                continue
            count, newer = known
            # else the count was taken in between
            if (
                known_after is None
                or known_after.get(room_nid, upto) <= count.upto
                or not _have_outcomes(newer)
            ):
                cached[room_nid] = known
        return cached

    def _get_cached_count(
        self, user_id: UserID, room_nid: int, upto: int, ignored: Set[str]
    ) -> tuple[_Count, Sequence[_Counted]] | None:
        """Return the cached count of one room with all events since, whatever the user's push
        actions are."""
        count = self._counts.get((user_id, room_nid))
        if count is None or count.ignored != ignored:
            return None
        recent = self._recent.peek(room_nid)
        if recent is None:
            return (count, ()) if count.upto >= self._dropped_upto else None
        return (
            (count, recent.after(count.upto, upto)) if count.upto >= recent.complete_from else None
        )

    def _on_changes(self, changes: Sequence[Change]) -> None:
        redactions: set[int] = set()
        for change in changes:
            row = change.detail
            if isinstance(row, EventRow | EventSummary):
                self._add(row, change.position)
                if row.type == REDACTION:
                    redactions.add(change.position)
            elif isinstance(row, ReceiptRow | MembershipRow):
                self._changes += 1
                self._counts.pop((row.user_id, row.room_nid))
            elif isinstance(row, PurgedMessages):
                # purged messages may have been counted
                self._changes += 1
                self._begin_at(row.room_nid, change.position)
            elif change.topic in (
                Topic.EVENT,
                Topic.RECEIPT,
                Topic.MEMBERSHIP,
                Topic.PURGED,
                Topic.PARTIAL_STATE,
            ):
                # counted messages may disappear when a room's state becomes complete
                self._drop_counts()
        if any(
            change.topic is Topic.REDACTED and change.position not in redactions
            for change in changes
        ):
            # a redaction by another node, or a backfilled one: its room is not known here
            self._drop_counts()

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Handle a write of another node. If it has not described its changes, drop all counts."""
        changes = self._streams.get_remote_changes(after, upto)
        self._changes += 1
        if changes is None:
            self._counts.clear()
        else:
            self._on_changes(changes)

    def _drop_counts(self) -> None:
        self._changes += 1
        self._counts.clear()

    def _add(self, row: EventRow | EventSummary, position: int) -> None:
        if row.type == REDACTION or (isinstance(row, EventSummary) and row.flags & COUNTED):
            # the redacted event may have been counted; the flags of events of other nodes are not
            # known
            self._changes += 1
            self._begin_at(row.room_nid, position)
        elif isinstance(row, EventRow) and row.flags & COUNTED:
            recent = self._recent.get(row.room_nid)
            if recent is None:
                recent = self._begin_at(row.room_nid, self._dropped_upto)
            recent.events.append(_Counted(position, row.sender, row.flags, row.thread_root or MAIN))
            if len(recent.events) > COUNTED_EVENTS:
                recent.complete_from = recent.events.pop(0).position

    def _begin_at(self, room_nid: int, position: int) -> _Recent:
        recent = self._recent.get(room_nid)
        if recent is None:
            recent = _Recent(position)
            self._recent.put(room_nid, recent)
        else:
            recent.complete_from, recent.events = position, []
        return recent

    def _on_evicted(self, _room_nid: int, recent: _Recent) -> None:
        last = recent.events[-1].position if recent.events else recent.complete_from
        self._dropped_upto = max(self._dropped_upto, last)


def _have_outcomes(events: Sequence[_Counted]) -> bool:
    """Return whether push actions of one of the events differ for some users."""
    flags = 0
    for event in events:
        flags |= event.flags
    return bool(flags & EventFlag.HAS_PUSH_ACTIONS)


def _add_events(
    user_id: str,
    count: _Count,
    newer: Sequence[_Counted],
    history: PushRuleHistory,
    room_id: str,
    outcomes: Mapping[int, int],
) -> None:
    """Update a count with the events since it was taken."""
    for event in newer:
        if event.sender == user_id:
            if event.flags & EventFlag.NOTIFIES:  # a message of the user marks the thread as read
                count.threads.pop(event.thread, None)
        elif event.sender not in count.ignored:
            outcome = outcomes.get(event.position)
            if outcome is None:
                level = history.get_level_at(room_id, event.position) if history.changes else ALL
                outcome = get_default_outcome(event.flags, level)
            if outcome:
                numbers = count.threads.get(event.thread)
                if numbers is None:
                    numbers = count.threads[event.thread] = _Numbers()
                numbers.notifications += 1
                numbers.highlights += outcome >= HIGHLIGHTED
