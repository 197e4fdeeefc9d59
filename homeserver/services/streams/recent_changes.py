"""The recent changes in memory, by rooms and users. They tell a sync with a recent position what to
read, without a query for each room. Use this module only on the reactor thread.

The changes after a position are collected once and cached until the next change: the many readers
that one message wakes usually have the same position.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence, Set
from operator import attrgetter
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.timelines import count_upto
from homeserver.cluster.incoming_changes import IncomingChanges
from homeserver.cluster.outgoing_changes import Range, subtract_ranges
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventFlag, EventRow, EventSummary
from storage.retention.purging import PurgedMessages
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.receipts import ReceiptRow
from storage.rooms.sticky_events import StickyRow

MAX_CHANGES: Final = 20_000
PRIVATE_RECEIPT: Final = "m.read.private"
ENCRYPTION: Final = "m.room.encryption"
NO_USERS: Final[frozenset[str]] = frozenset()
NO_ROOMS: Final[frozenset[int]] = frozenset()
OUTSIDE_TIMELINE: Final = frozenset({Topic.RECEIPT, Topic.STICKY})
"""Changes of a room outside its timeline."""
DEVICE_LIST_TOPICS: Final = frozenset(
    {Topic.DEVICE, Topic.SIGNATURE, Topic.MEMBERSHIP, Topic.PARTIAL_STATE}
)
"""Changes that may affect device lists, besides the encryption of rooms."""
MAX_GAPS: Final = 100
"""Ranges of unknown changes of other nodes."""
NEWEST_CHECKED: Final = 8
"""Newest changes that are searched first."""
MAX_CACHED_POSITIONS: Final = 200
"""Positions for which the changes since are cached."""


class ChangedRooms(msgspec.Struct, frozen=True, gc=False):
    """Numbers of rooms by kind of change. Many readers share the sets, so do not change them."""

    events: Set[int] = frozenset()
    receipts: Set[int] = frozenset()
    """Also rooms with sticky events, which are sent outside the timeline."""


DEVICE_TOPICS: Final = frozenset({Topic.TO_DEVICE, Topic.DEVICES_DELETED, Topic.KEY_COUNT})
"""Changes that concern only the users named in them."""


class _Entry(msgspec.Struct, frozen=True, gc=False):
    """One change: its room, its only reader if there is one, the users that it concerns, and a
    membership."""

    position: int
    topic: Topic
    room_nid: int | None = None
    reader: str | None = None
    """The only user that the change in the room concerns; None for all."""
    user_id: str | None = None
    row: MembershipRow | None = None
    is_encryption: bool = False
    sender: str | None = None
    """The user of a receipt."""
    counted_upto: int = 0
    """For purged messages: the position of the last one that may have been counted as unread."""
    user_ids: Sequence[str] = ()


_position: Final = attrgetter("position")


class _ChangesSince:
    """The changes after one position."""

    __slots__ = (
        "encryption",
        "memberships",
        "of_readers",
        "purged",
        "read",
        "shared",
        "topics",
        "users",
    )

    def __init__(self, entries: Sequence[_Entry]) -> None:
        events, receipts = set[int](), set[int]()
        self.shared = ChangedRooms(events, receipts)
        self.of_readers: dict[str, tuple[set[int], set[int]]] = {}
        """Rooms with a change for one user only: memberships, and private receipts."""
        self.read: dict[str, set[int]] = {}
        """Rooms with a new receipt of the user."""
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
                kinds[entry.topic in OUTSIDE_TIMELINE].add(entry.room_nid)
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
        """Return the rooms with changes for the user or for all."""
        own = self.of_readers.get(user_id)
        if own is None:
            return self.shared
        return ChangedRooms(self.shared.events | own[0], self.shared.receipts | own[1])


class RecentChanges:
    """An index of the newest changes of the main sequence.

    It is not a `StreamCache`, since it has no values by key.
    """

    def __init__(
        self, *, streams: Streams, incoming_changes: IncomingChanges | None = None
    ) -> None:
        """`incoming_changes`: the changes of other nodes; None on a single node."""
        self._streams = streams
        self._incoming_changes = incoming_changes
        self._dropped_upto = self._complete_from = streams.current()
        self._gaps: list[Range] = []
        """Ranges that other nodes wrote and whose changes are not known yet."""
        self._entries: list[_Entry] = []
        """By position."""
        self._named = 0
        """The number of users in entries that name several."""
        self._since_position: dict[int, _ChangesSince] = {}
        """The changes after a position, cached until the next change."""
        streams.subscribe(self._on_changes, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)
        if incoming_changes is not None:
            incoming_changes.subscribe(self._on_late_changes, self._on_lost_ranges)

    def rooms_since(self, user_id: UserID, position: int) -> ChangedRooms | None:
        """Return the rooms with changes after the position that may concern the user.

        None if the position is too old.
        """
        changes_since = self._since(position)
        return None if changes_since is None else changes_since.rooms_of(user_id)

    def concerns_user(self, user_id: UserID, topic: Topic, position: int) -> bool:
        """Return whether the user may have changes of a topic after the position."""
        changes_since = self._since(position)
        return changes_since is None or user_id in changes_since.users.get(topic, NO_USERS)

    def read_since(self, user_id: UserID, position: int) -> Set[int] | None:
        """Return the rooms with new receipts of the user after the position; None as for
        `rooms_since`."""
        changes_since = self._since(position)
        return None if changes_since is None else changes_since.read.get(user_id, NO_ROOMS)

    def users_since(self, topic: Topic, position: int) -> Set[str] | None:
        """Return the users with changes of a topic after the position; None as for
        `rooms_since`."""
        changes_since = self._since(position)
        return None if changes_since is None else changes_since.users.get(topic, NO_USERS)

    def memberships_since(self, position: int) -> Sequence[MembershipRow] | None:
        """Return the memberships that changed after the position; None as for `rooms_since`, or if
        some are unknown."""
        changes_since = self._since(position)
        return None if changes_since is None else changes_since.memberships

    def encryption_since(self, position: int) -> Set[int] | None:
        """Return the rooms whose encryption changed after the position by an event, or may have
        changed by state resolution; None as for `rooms_since`."""
        changes_since = self._since(position)
        return None if changes_since is None else changes_since.encryption

    def purged_since(self, position: int) -> Mapping[int, int] | None:
        """Return, by room with messages purged after the position, the position of the last purged
        message that may have been counted as unread; None as for `rooms_since`."""
        changes_since = self._since(position)
        return None if changes_since is None else changes_since.purged

    def concerns_device_lists(self, position: int) -> bool:
        """Return whether device lists may have changed after the position."""
        changes_since = self._since(position)
        return (
            changes_since is None
            or bool(changes_since.encryption)
            or not changes_since.topics.isdisjoint(DEVICE_LIST_TOPICS)
        )

    def _after(self, position: int) -> Sequence[_Entry]:
        """Return the entries after a position. Usually these are few, so the newest are searched
        first."""
        newest = self._entries[-NEWEST_CHECKED:]
        if newest and newest[0].position <= position:
            return newest[count_upto(newest, position) :]
        return self._entries[bisect_right(self._entries, position, key=_position) :]

    def _since(self, position: int) -> _ChangesSince | None:
        changes_since = self._since_position.get(position)
        if changes_since is None:
            if position < self._complete_from:
                return None
            # no `LRU`: each change empties it, and it seldom becomes full between two changes
            if len(self._since_position) >= MAX_CACHED_POSITIONS:
                self._since_position.clear()
            changes_since = _ChangesSince(self._after(position))
            self._since_position[position] = changes_since
        return changes_since

    def _on_changes(self, changes: Sequence[Change]) -> None:
        self._since_position.clear()
        for change in changes:
            self._add(change)
        while len(self._entries) + self._named > 2 * MAX_CHANGES:
            self._drop(self._entries[len(self._entries) // 2].position)

    def _add(self, change: Change) -> None:
        row, position, user_id = change.detail, change.position, change.user_id
        if change.topic in DEVICE_TOPICS:
            entry = _Entry(position, change.topic, user_id=user_id, user_ids=change.user_ids)
            self._named += len(change.user_ids)
        elif isinstance(row, StickyRow):
            entry = _Entry(position, change.topic, row.room_nid)
        elif isinstance(row, EventRow | EventSummary):
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
            entry = _Entry(position, Topic.PARTIAL_STATE, row.room_nid)
        elif change.topic in (Topic.EVENT, Topic.STICKY, Topic.RECEIPT):
            self._drop(position)  # a change of another node in an unknown room
            entry = _Entry(position, change.topic)
        else:
            if change.topic is Topic.MEMBERSHIP:
                self._drop(position)
            entry = _Entry(position, change.topic, user_id=user_id)
        if not self._entries or self._entries[-1].position <= position:
            self._entries.append(entry)
        else:
            self._entries.insert(bisect_right(self._entries, position, key=_position), entry)

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Add the changes of another node. If it did not announce them, record a gap, or drop
        everything up to there."""
        announced = self._streams.get_remote_changes(after, upto)
        if announced is not None:
            self._on_changes(announced)
            return
        self._since_position.clear()
        if self._incoming_changes is None or len(self._gaps) >= MAX_GAPS:
            self._drop(upto)
        else:
            self._gaps.append((after, upto))
            self._update_complete_from()

    def _on_late_changes(self, ranges: Sequence[Range], changes: Sequence[Change]) -> None:
        """Add late changes of other nodes that fill these ranges."""
        self._on_changes([change for change in changes if change.position > self._dropped_upto])
        self._gaps = subtract_ranges(self._gaps, ranges)
        self._update_complete_from()

    def _on_lost_ranges(self, ranges: Sequence[Range]) -> None:
        """Drop everything up to these ranges: their changes will not become known."""
        self._since_position.clear()
        self._drop(max(upto for _, upto in ranges))

    def _update_complete_from(self) -> None:
        self._gaps = [gap for gap in self._gaps if gap[1] > self._dropped_upto]
        self._complete_from = max([self._dropped_upto, *(upto for _, upto in self._gaps)])

    def _drop(self, upto: int) -> None:
        keep = bisect_right(self._entries, upto, key=_position)
        self._dropped_upto = max(self._dropped_upto, upto)
        self._update_complete_from()
        self._named -= sum([len(entry.user_ids) for entry in self._entries[:keep]])
        del self._entries[:keep]
