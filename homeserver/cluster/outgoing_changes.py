"""What a node writes, as it tells the others: so that there no more is looked at, and nobody more
is woken, than here.

What they have to know of a change is in its `News`; they are told with the stretches of the one
sequence that a node has written, in notes of a few kilobytes. Where a commit has very many changes
others learn only that there were some.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final

import msgspec

from homeserver.cluster.notify import NodeNotes
from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventNews, EventRow
from storage.retention.purging import PurgedMessages
from storage.rooms.memberships import MembershipRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.receipts import ReceiptRow
from storage.rooms.sticky_events import StickyRow

KIND: Final = "written"
"""Of notes to other nodes."""
LONGEST: Final = 6_000
"""Bytes of the news of a note; what is around them is less than a thousand."""
MOST_CHANGES: Final = 1_000
"""Of a commit."""
MOST_RANGES: Final = 20

_position: Final = attrgetter("position")

Range = tuple[int, int]
"""(after, upto): what is above the one, up to and with the other."""


class News(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One change."""

    position: int = msgspec.field(name="p")
    topic: Topic = msgspec.field(name="t")
    user_id: str | None = msgspec.field(default=None, name="u")
    user_ids: Sequence[str] = msgspec.field(default=(), name="us")
    event: EventNews | None = msgspec.field(default=None, name="e")
    membership: MembershipRow | None = msgspec.field(default=None, name="m")
    receipt: ReceiptRow | None = msgspec.field(default=None, name="r")
    sticky: StickyRow | None = msgspec.field(default=None, name="s")
    partial: PartialRoom | None = msgspec.field(default=None, name="c")
    purged: PurgedMessages | None = msgspec.field(default=None, name="g")

    @property
    def change(self) -> Change:
        """As it is told within a node."""
        detail = (
            self.event
            or self.membership
            or self.receipt
            or self.sticky
            or self.partial
            or self.purged
        )
        return Change(self.position, self.topic, None, self.user_id, detail, self.user_ids)


class Written(msgspec.Struct, frozen=True, array_like=True):
    """A note."""

    ranges: list[Range]
    news: list[News]
    is_known: bool = True
    """False: nobody is told what was written there."""

    @property
    def upto(self) -> int:
        """The highest position."""
        return self.ranges[-1][1]


class _Draft(msgspec.Struct, array_like=True):
    """A note that waits to be told, and may still grow."""

    ranges: list[Range]
    news: list[msgspec.Raw]
    is_known: bool = True

    def has_room(self, length: int) -> bool:
        return (
            self.is_known
            and len(self.ranges) < MOST_RANGES
            and length + sum(map(len, self.news)) <= LONGEST
        )


class Writing:
    """Tells other nodes what this one writes."""

    def __init__(self, streams: Streams, notes: NodeNotes) -> None:
        self._notes = notes
        self._number = 0
        streams.tell(self._tell)

    def _tell(self, after: int, upto: int, changes: Sequence[Change]) -> None:
        if not self._notes.is_connected:
            return
        if len(changes) > MOST_CHANGES:
            self._add_unknown((after, upto))
            return
        begun, news, reached = after, list[msgspec.Raw](), after
        for position, group in groupby(changes, _position):
            encoded = [msgspec.Raw(msgspec.json.encode(_news_of(change))) for change in group]
            if news and sum(map(len, news)) + sum(map(len, encoded)) > LONGEST:
                self._add((begun, reached), news)
                begun, news = reached, []
            news += encoded
            reached = position
        self._add((begun, upto), news)

    def _add(self, range: Range, news: list[msgspec.Raw]) -> None:
        length = sum(map(len, news))
        if length > LONGEST:
            self._add_unknown(range)
            return
        draft = self._notes.waiting(KIND, self._number)
        if not isinstance(draft, _Draft) or not draft.has_room(length):
            self._number += 1
            draft = _Draft([], [])
        if draft.ranges and draft.ranges[-1][1] == range[0]:
            draft.ranges[-1] = (draft.ranges[-1][0], range[1])
        else:
            draft.ranges.append(range)
        draft.news += news
        self._notes.put(KIND, self._number, draft)

    def _add_unknown(self, range: Range) -> None:
        self._number += 1
        self._notes.put(KIND, self._number, _Draft([range], [], is_known=False))


def without(ranges: Iterable[Range], told: Iterable[Range]) -> list[Range]:
    """What is left of these stretches once others are taken out."""
    left = list(ranges)
    for after, upto in told:
        left = [
            (begin, end)
            for low, high in left
            for begin, end in ((low, min(high, after)), (max(low, upto), high))
            if begin < end
        ]
    return left


def _news_of(change: Change) -> News:
    row = change.detail
    event = None
    if isinstance(row, EventRow):
        event = EventNews(row.room_nid, row.position, row.type, row.flags)
    return News(
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
