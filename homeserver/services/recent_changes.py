"""Which rooms and users the latest changes concern, from memory: who has seen all up to a recent position learns here
what to look at, instead of asking each of their rooms. For the reactor thread.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from federation.protocol.ids import UserID
from storage.events import EventRow
from storage.memberships import MembershipRow
from storage.receipts import ReceiptRow
from storage.sticky_events import StickyRow
from storage.streams import Change, Streams, Topic

KEPT: Final = 20_000
PRIVATE_RECEIPT: Final = "m.read.private"


@dataclass(frozen=True, slots=True)
class ChangedRooms:
    """Numbers of rooms, by what is new in them."""

    events: set[int] = field(default_factory=set)
    receipts: set[int] = field(default_factory=set)


class RecentChanges:
    """The newest changes of the one sequence."""

    def __init__(self, streams: Streams) -> None:
        self._complete_from = streams.current()
        self._positions: list[int] = []
        self._rooms: list[tuple[Topic, int, str | None] | None] = []
        """What is new in which room, and for whom alone."""
        self._users: list[tuple[Topic, str] | None] = []
        self._memberships: list[MembershipRow | None] = []
        streams.subscribe(self._hear)
        streams.watch(self._heed_others)

    def rooms_since(self, user_id: UserID, position: int) -> ChangedRooms | None:
        """The rooms in which something is new after the position that may concern the user.

        None if that reaches further back than is kept.
        """
        if position < self._complete_from:
            return None
        changed = ChangedRooms()
        for room in self._rooms[bisect_right(self._positions, position) :]:
            if room is not None and (room[2] is None or room[2] == user_id):
                (changed.receipts if room[0] is Topic.RECEIPT else changed.events).add(room[1])
        return changed

    def concerns_user(self, user_id: UserID, topic: Topic, position: int) -> bool:
        """Whether there may be changes of that topic for the user after the position."""
        if position < self._complete_from:
            return True
        start = bisect_right(self._positions, position)
        return (topic, user_id) in self._users[start:]

    def users_since(self, topic: Topic, position: int) -> set[str] | None:
        """The users whom changes of that topic after the position concern; None as for `rooms_since`."""
        if position < self._complete_from:
            return None
        start = bisect_right(self._positions, position)
        return {user[1] for user in self._users[start:] if user is not None and user[0] is topic}

    def memberships_since(self, position: int) -> list[MembershipRow] | None:
        """The memberships that changed after the position; None as for `rooms_since`, or if some are not known here."""
        if position < self._complete_from:
            return None
        start = bisect_right(self._positions, position)
        rows: list[MembershipRow] = []
        for user, row in zip(self._users[start:], self._memberships[start:], strict=True):
            if row is not None:
                rows.append(row)
            elif user is not None and user[0] is Topic.MEMBERSHIP:
                return None
        return rows

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            room: tuple[Topic, int, str | None] | None = None
            if isinstance(row, EventRow | StickyRow):
                room = (Topic.EVENT, row.room_nid, None)
            elif isinstance(row, ReceiptRow):
                room = (Topic.RECEIPT, row.room_nid, row.user_id if row.receipt_type == PRIVATE_RECEIPT else None)
            elif isinstance(row, MembershipRow):
                room = (Topic.EVENT, row.room_nid, row.user_id)
            elif change.topic in (Topic.EVENT, Topic.STICKY, Topic.RECEIPT, Topic.MEMBERSHIP):
                self._forget(change.position)  # another node's: in which room is not known here
            user = None
            if change.user_id is not None and change.topic not in (Topic.EVENT, Topic.RECEIPT):
                user = (change.topic, change.user_id)
            self._positions.append(change.position)
            self._rooms.append(room)
            self._users.append(user)
            self._memberships.append(row if isinstance(row, MembershipRow) else None)
        if len(self._positions) > 2 * KEPT:
            self._forget(self._positions[-KEPT - 1])

    def _heed_others(self, _after: int, upto: int) -> None:
        """Another node wrote: what is new up to there is not known here."""
        self._forget(upto)

    def _forget(self, upto: int) -> None:
        keep = bisect_right(self._positions, upto)
        self._complete_from = max(self._complete_from, upto)
        del self._positions[:keep], self._rooms[:keep], self._users[:keep], self._memberships[:keep]
