"""Which rooms and users the latest changes concern, from memory: who has seen all up to a recent position learns here
what to look at, instead of asking each of their rooms. For the reactor thread.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from federation.protocol.ids import UserID
from storage.events import EventRow
from storage.memberships import MembershipRow
from storage.receipts import ReceiptRow
from storage.streams import Change, Streams, Topic

KEPT = 20_000


@dataclass(frozen=True, slots=True)
class ChangedRooms:
    """Numbers of rooms, by what is new in them."""

    events: set[int]
    receipts: set[int]


class RecentChanges:
    """The newest changes of the one sequence."""

    def __init__(self, streams: Streams) -> None:
        self._complete_from = streams.current()
        self._positions: list[int] = []
        self._rooms: list[tuple[type, int] | None] = []
        self._users: list[tuple[Topic, str] | None] = []
        self._memberships: list[MembershipRow | None] = []
        streams.subscribe(self._hear)

    def rooms_since(self, position: int) -> ChangedRooms | None:
        """The rooms in which something is new after the position; None if that reaches further back than is kept."""
        if position < self._complete_from:
            return None
        start = bisect_right(self._positions, position)
        rooms: dict[type, set[int]] = {EventRow: set(), ReceiptRow: set()}
        for room in self._rooms[start:]:
            if room is not None:
                rooms[room[0]].add(room[1])
        return ChangedRooms(rooms[EventRow], rooms[ReceiptRow])

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
            room = (type(row), row.room_nid) if isinstance(row, EventRow | ReceiptRow) else None
            user = (change.topic, change.user_id) if change.user_id is not None and room is None else None
            if change.topic is Topic.EVENT and room is None:
                self._forget(change.position)  # another node's event: in which room is not known here
            self._positions.append(change.position)
            self._rooms.append(room)
            self._users.append(user)
            self._memberships.append(row if isinstance(row, MembershipRow) else None)
        if len(self._positions) > 2 * KEPT:
            self._forget(self._positions[-KEPT - 1])

    def _forget(self, upto: int) -> None:
        keep = bisect_right(self._positions, upto)
        self._complete_from = max(self._complete_from, upto)
        del self._positions[:keep], self._rooms[:keep], self._users[:keep], self._memberships[:keep]
