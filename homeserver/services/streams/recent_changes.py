"""Which rooms and users the latest changes concern, from memory: who has seen all up to a recent
position learns here what to look at, instead of asking each of their rooms. For the reactor thread.

What happened since a position is gathered once, for all who ask before something else happens: the
many readers whom one message wakes were mostly at the same position.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence, Set
from operator import attrgetter
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.timelines import count_upto
from homeserver.cluster.incoming_changes import NewsOfOthers
from homeserver.cluster.outgoing_changes import Range, without
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventFlag, EventNews, EventRow
from storage.retention.purging import PurgedMessages
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.receipts import ReceiptRow
from storage.rooms.sticky_events import StickyRow

KEPT: Final = 20_000
PRIVATE_RECEIPT: Final = "m.read.private"
ENCRYPTION: Final = "m.room.encryption"
NOBODY: Final[frozenset[str]] = frozenset()
NO_ROOMS: Final[frozenset[int]] = frozenset()
BESIDE: Final = frozenset({Topic.RECEIPT, Topic.STICKY})
"""What is new in a room beside its timeline."""
OF_DEVICE_LISTS: Final = frozenset(
    {Topic.DEVICE, Topic.SIGNATURE, Topic.MEMBERSHIP, Topic.COMPLETENESS}
)
"""After which devices have to be known, or known anew; beside the encryption of rooms."""
MOST_HOLES: Final = 100
"""Stretches of which nothing is known yet."""
LAST_FEW: Final = 8
"""Changes that are asked first."""
POSITIONS_AT_ONCE: Final = 200
"""Of so many positions what happened since is kept until something else happens."""


class ChangedRooms(msgspec.Struct, frozen=True, gc=False):
    """Numbers of rooms, by what is new in them. Many readers share the sets: read, don't change."""

    events: Set[int] = frozenset()
    receipts: Set[int] = frozenset()
    """Also sticky events, which are told beside the timeline."""


PERSONAL: Final = frozenset({Topic.TO_DEVICE, Topic.DEVICES_GONE, Topic.KEY_COUNT})
"""What only the users hear of who are named in the change."""


class _Entry(msgspec.Struct, frozen=True, gc=False):
    """One change: in which room something is new, and for whom alone; whom it concerns; who
    moved."""

    position: int
    topic: Topic
    room_nid: int | None = None
    reader: str | None = None
    """The only one whom what is new in the room concerns; None for all."""
    user_id: str | None = None
    row: MembershipRow | None = None
    is_encryption: bool = False
    sender: str | None = None
    """Whose receipt it is."""
    counted_upto: int = 0
    """Of messages that were purged: the position of the last that may have been counted as
    unread."""
    user_ids: Sequence[str] = ()


_position: Final = attrgetter("position")


class _News:
    """What happened after one position."""

    __slots__ = (
        "encryption",
        "everyones",
        "memberships",
        "of_readers",
        "purged",
        "read",
        "topics",
        "users",
    )

    def __init__(self, entries: Sequence[_Entry]) -> None:
        events, receipts = set[int](), set[int]()
        self.everyones = ChangedRooms(events, receipts)
        self.of_readers: dict[str, tuple[set[int], set[int]]] = {}
        """Rooms in which something is new for one user alone: changes, and private receipts."""
        self.read: dict[str, set[int]] = {}
        """Rooms in which a user's own receipts moved."""
        self.users: dict[Topic, set[str]] = {}
        self.memberships: list[MembershipRow] | None = []
        self.encryption: set[int] = set()
        self.purged: dict[int, int] = {}
        self.topics: set[Topic] = {entry.topic for entry in entries}
        for entry in entries:
            if entry.counted_upto and entry.room_nid is not None:
                self.purged[entry.room_nid] = max(
                    self.purged.get(entry.room_nid, 0), entry.counted_upto
                )
            elif entry.room_nid is not None:
                kinds = (
                    (events, receipts) if entry.reader is None else self._of_reader(entry.reader)
                )
                kinds[entry.topic in BESIDE].add(entry.room_nid)
            if entry.sender is not None and entry.room_nid is not None:
                self.read.setdefault(entry.sender, set()).add(entry.room_nid)
            if entry.user_id is not None:
                self.users.setdefault(entry.topic, set()).add(entry.user_id)
            if entry.user_ids:
                self.users.setdefault(entry.topic, set()).update(entry.user_ids)
            if entry.row is not None and self.memberships is not None:
                self.memberships.append(entry.row)
            elif entry.topic is Topic.MEMBERSHIP and entry.user_id is not None:
                self.memberships = None
            if entry.is_encryption and entry.room_nid is not None:
                self.encryption.add(entry.room_nid)

    def _of_reader(self, user_id: str) -> tuple[set[int], set[int]]:
        return self.of_readers.setdefault(user_id, (set(), set()))

    def rooms_of(self, user_id: str) -> ChangedRooms:
        """The rooms in which something is new for the user, or for all."""
        own = self.of_readers.get(user_id)
        if own is None:
            return self.everyones
        return ChangedRooms(self.everyones.events | own[0], self.everyones.receipts | own[1])


class RecentChanges:
    """The newest changes of the one sequence.

    No `StreamCache`: an index by position, not values by key.
    """

    def __init__(self, streams: Streams, others: NewsOfOthers | None = None) -> None:
        """`others`: who knows what other nodes write; None where there are none."""
        self._streams = streams
        self._others = others
        self._forgotten_upto = self._complete_from = streams.current()
        self._holes: list[Range] = []
        """Stretches that other nodes wrote and of which nothing is known yet."""
        self._entries: list[_Entry] = []
        """In order."""
        self._named = 0
        """How many users are named in entries that have several."""
        self._gathered: dict[int, _News] = {}
        """By position what happened since, until something does."""
        streams.subscribe(self._on_changes, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)
        if others is not None:
            others.wait_for(self._hear_late, self._give_up)

    def rooms_since(self, user_id: UserID, position: int) -> ChangedRooms | None:
        """The rooms in which something is new after the position that may concern the user.

        None if that reaches further back than is kept.
        """
        news = self._since(position)
        return None if news is None else news.rooms_of(user_id)

    def concerns_user(self, user_id: UserID, topic: Topic, position: int) -> bool:
        """Whether there may be changes of that topic for the user after the position."""
        news = self._since(position)
        return news is None or user_id in news.users.get(topic, NOBODY)

    def read_since(self, user_id: UserID, position: int) -> Set[int] | None:
        """The rooms in which the user's own receipts moved after the position; None as for
        `rooms_since`."""
        news = self._since(position)
        return None if news is None else news.read.get(user_id, NO_ROOMS)

    def users_since(self, topic: Topic, position: int) -> Set[str] | None:
        """The users whom changes of that topic after the position concern; None as for
        `rooms_since`."""
        news = self._since(position)
        return None if news is None else news.users.get(topic, NOBODY)

    def memberships_since(self, position: int) -> Sequence[MembershipRow] | None:
        """The memberships that changed after the position; None as for `rooms_since`, or if some
        are not known here."""
        news = self._since(position)
        return None if news is None else news.memberships

    def encryption_since(self, position: int) -> Set[int] | None:
        """The rooms whose encryption was set by an event after the position, or may have been with
        what came by the state alone; None as for `rooms_since`."""
        news = self._since(position)
        return None if news is None else news.encryption

    def purged_since(self, position: int) -> Mapping[int, int] | None:
        """By room the position of the last message that may have been counted as unread, and lost
        its content after that position; None as for `rooms_since`."""
        news = self._since(position)
        return None if news is None else news.purged

    def concerns_device_lists(self, position: int) -> bool:
        """Whether the devices that a client has to know of may be others since the position."""
        news = self._since(position)
        return news is None or bool(news.encryption) or not news.topics.isdisjoint(OF_DEVICE_LISTS)

    def _after(self, position: int) -> Sequence[_Entry]:
        """What came after a position: mostly the last few changes, so these are asked first."""
        few = self._entries[-LAST_FEW:]
        if few and few[0].position <= position:
            return few[count_upto(few, position) :]
        return self._entries[bisect_right(self._entries, position, key=_position) :]

    def _since(self, position: int) -> _News | None:
        news = self._gathered.get(position)
        if news is None:
            if position < self._complete_from:
                return None
            if len(self._gathered) >= POSITIONS_AT_ONCE:
                self._gathered.clear()
            news = _News(self._after(position))
            self._gathered[position] = news
        return news

    def _on_changes(self, changes: Sequence[Change]) -> None:
        self._gathered.clear()
        for change in changes:
            self._add(change)
        while len(self._entries) + self._named > 2 * KEPT:
            self._forget(self._entries[len(self._entries) // 2].position)

    def _add(self, change: Change) -> None:
        row, position, user_id = change.detail, change.position, change.user_id
        if change.topic in PERSONAL:
            entry = _Entry(position, change.topic, user_id=user_id, user_ids=change.user_ids)
            self._named += len(change.user_ids)
        elif isinstance(row, StickyRow):
            entry = _Entry(position, change.topic, row.room_nid)
        elif isinstance(row, EventRow | EventNews):
            is_encryption = bool(row.flags & EventFlag.RESOLVED) or row.type == ENCRYPTION
            entry = _Entry(position, Topic.EVENT, row.room_nid, is_encryption=is_encryption)
        elif isinstance(row, ReceiptRow):
            reader = row.user_id if row.receipt_type == PRIVATE_RECEIPT else None
            entry = _Entry(position, Topic.RECEIPT, row.room_nid, reader, sender=row.user_id)
        elif isinstance(row, MembershipRow):
            entry = _Entry(position, change.topic, row.room_nid, row.user_id, user_id, row)
        elif isinstance(row, PurgedMessages):
            entry = _Entry(
                position,
                change.topic,
                row.room_nid if row.counted_upto else None,
                counted_upto=row.counted_upto,
            )
        elif isinstance(row, PartialRoom):
            entry = _Entry(position, Topic.COMPLETENESS, row.room_nid)
        elif change.topic in (Topic.EVENT, Topic.STICKY, Topic.RECEIPT):
            self._forget(position)  # another node's: in which room is not known here
            entry = _Entry(position, change.topic)
        else:
            if change.topic is Topic.MEMBERSHIP:
                self._forget(position)
            entry = _Entry(position, change.topic, user_id=user_id)
        if not self._entries or self._entries[-1].position <= position:
            self._entries.append(entry)
        else:
            self._entries.insert(bisect_right(self._entries, position, key=_position), entry)

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Another node wrote: where it has not said what, what is new up to there is not known
        here, or not yet."""
        told = self._streams.told(after, upto)
        if told is not None:
            self._on_changes(told)
            return
        self._gathered.clear()
        if self._others is None or len(self._holes) >= MOST_HOLES:
            self._forget(upto)
        else:
            self._holes.append((after, upto))
            self._look_for_holes()

    def _hear_late(self, ranges: Sequence[Range], changes: Sequence[Change]) -> None:
        """What was not known of these stretches is known now."""
        self._on_changes([change for change in changes if change.position > self._forgotten_upto])
        self._holes = without(self._holes, ranges)
        self._look_for_holes()

    def _give_up(self, ranges: Sequence[Range]) -> None:
        """What is new there will not be known."""
        self._gathered.clear()
        self._forget(max(upto for _, upto in ranges))

    def _look_for_holes(self) -> None:
        self._holes = [hole for hole in self._holes if hole[1] > self._forgotten_upto]
        self._complete_from = max([self._forgotten_upto, *(upto for _, upto in self._holes)])

    def _forget(self, upto: int) -> None:
        keep = bisect_right(self._entries, upto, key=_position)
        self._forgotten_upto = max(self._forgotten_upto, upto)
        self._look_for_holes()
        self._named -= sum([len(entry.user_ids) for entry in self._entries[:keep]])
        del self._entries[:keep]
