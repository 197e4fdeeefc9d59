"""Tells the other nodes what each commit changed, so that they invalidate only the affected cache
entries and wake only the affected long polls.

A `RemoteChange` holds what other nodes need to know about a change. Messages of a few kilobytes
carry these changes, together with the ranges of positions that this node wrote. A message carries
only the range if the commit has more than `MAX_CHANGES` changes, or if the changes at one position
do not fit into a message.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final

import msgspec

from homeserver.cluster.node_messages import NodeMessages
from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventRow, EventSummary
from storage.retention.purging import PurgedMessages
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.receipts import ReceiptRow
from storage.rooms.sticky_events import StickyRow

KIND: Final = "written"
"""The kind of these messages."""
MAX_MESSAGE_BYTES: Final = 6_000
"""The largest size of the changes in a message, in bytes. The rest of a message takes less than a
thousand."""
MAX_CHANGES: Final = 1_000
"""The largest number of changes of a commit that are described."""
MAX_RANGES: Final = 20

_position: Final = attrgetter("position")

Range = tuple[int, int]
"""A range of positions: (after, upto) excludes the first and includes the last."""


class RemoteChange(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One change."""

    position: int = msgspec.field(name="p")
    topic: Topic = msgspec.field(name="t")
    user_id: str | None = msgspec.field(default=None, name="u")
    user_ids: Sequence[str] = msgspec.field(default=(), name="us")
    event: EventSummary | None = msgspec.field(default=None, name="e")
    membership: MembershipRow | None = msgspec.field(default=None, name="m")
    receipt: ReceiptRow | None = msgspec.field(default=None, name="r")
    sticky: StickyRow | None = msgspec.field(default=None, name="s")
    partial: PartialRoom | None = msgspec.field(default=None, name="c")
    purged: PurgedMessages | None = msgspec.field(default=None, name="g")

    @property
    def change(self) -> Change:
        """The change as streams within a node deliver it."""
        detail = (
            self.event
            or self.membership
            or self.receipt
            or self.sticky
            or self.partial
            or self.purged
        )
        return Change(self.position, self.topic, None, self.user_id, detail, self.user_ids)


class CommitMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message with ranges of positions and their changes."""

    ranges: list[Range]
    changes: list[RemoteChange]
    is_known: bool = True
    """False if the changes in the ranges are too many to describe."""

    @property
    def upto(self) -> int:
        """The highest position."""
        return self.ranges[-1][1]


class _Draft(msgspec.Struct, array_like=True):
    """A queued message, which may still grow."""

    ranges: list[Range]
    changes: list[msgspec.Raw]
    is_known: bool = True

    def has_room(self, length: int) -> bool:
        return (
            self.is_known
            and len(self.ranges) < MAX_RANGES
            and length + sum(map(len, self.changes)) <= MAX_MESSAGE_BYTES
        )


class OutgoingChanges:
    """Sends this node's changes to the other nodes."""

    def __init__(self, *, streams: Streams, messages: NodeMessages) -> None:
        self._messages = messages
        self._number = 0
        streams.add_commit_listener(self._on_commit)

    def _on_commit(self, after: int, upto: int, changes: Sequence[Change]) -> None:
        if not self._messages.is_connected:
            return
        if len(changes) > MAX_CHANGES:
            self._add_unknown((after, upto))
            return
        start, batch, end = after, list[msgspec.Raw](), after
        for position, group in groupby(changes, _position):
            encoded = [msgspec.Raw(msgspec.json.encode(_describe(change))) for change in group]
            if batch and sum(map(len, batch)) + sum(map(len, encoded)) > MAX_MESSAGE_BYTES:
                self._add((start, end), batch)
                start, batch = end, []
            batch += encoded
            end = position
        self._add((start, upto), batch)

    def _add(self, range: Range, changes: list[msgspec.Raw]) -> None:
        length = sum(map(len, changes))
        if length > MAX_MESSAGE_BYTES:
            self._add_unknown(range)
            return
        draft = self._messages.get_queued(KIND, self._number)
        if not isinstance(draft, _Draft) or not draft.has_room(length):
            self._number += 1
            draft = _Draft([], [])
        if draft.ranges and draft.ranges[-1][1] == range[0]:
            draft.ranges[-1] = (draft.ranges[-1][0], range[1])
        else:
            draft.ranges.append(range)
        draft.changes += changes
        self._messages.queue(KIND, self._number, draft)

    def _add_unknown(self, range: Range) -> None:
        self._number += 1
        self._messages.queue(KIND, self._number, _Draft([range], [], is_known=False))


def subtract_ranges(ranges: Iterable[Range], removed: Iterable[Range]) -> list[Range]:
    """Return the parts of `ranges` that are not in `removed`."""
    left = list(ranges)
    for after, upto in removed:
        left = [
            (begin, end)
            for low, high in left
            for begin, end in ((low, min(high, after)), (max(low, upto), high))
            if begin < end
        ]
    return left


def _describe(change: Change) -> RemoteChange:
    row = change.detail
    event = None
    if isinstance(row, EventRow):
        event = EventSummary(row.room_nid, row.position, row.type, row.flags)
    return RemoteChange(
        change.position,
        change.topic,
        change.user_id,
        change.user_ids,
        event,
        row if isinstance(row, MembershipRow) else None,
        row if isinstance(row, ReceiptRow) else None,
        row if isinstance(row, StickyRow) else None,
        row if isinstance(row, PartialRoom) else None,
        PurgedMessages(row.room_nid, (), row.counted_upto)
        if isinstance(row, PurgedMessages)
        else None,
    )
