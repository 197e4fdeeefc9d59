"""The rooms of users in the order of lists, from memory: kept up by what has changed since they
were looked at last, so that a list costs no more for somebody in thousands of rooms.

A dictionary keeps the order in which its keys were set. So it holds the rooms, the one with the
oldest news first: whatever the stream tells of a room is the newest of all, and moves it to the
end. For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.memberships import Memberships
from homeserver.services.sliding_sync.filter_data import RoomTags
from homeserver.services.sliding_sync.request import ListFilters
from homeserver.services.sliding_sync.room_recency import RoomRecency
from homeserver.services.streams.recent_changes import RecentChanges
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow

OUTSIDE: Final = frozenset({"invite", "knock"})
FILTERS_KEPT: Final = 8
"""So many filters of one user are kept: clients have a few lists, and ask for the same ones again
and again."""


class NewestFirst(Collection[MembershipRow]):
    """The rooms of a dictionary that has the oldest ones first."""

    def __init__(self, rooms: dict[int, MembershipRow]) -> None:
        self._rooms = rooms

    def __len__(self) -> int:
        return len(self._rooms)

    def __iter__(self) -> Iterator[MembershipRow]:
        return reversed(self._rooms.values())

    def __contains__(self, row: object) -> bool:
        return isinstance(row, MembershipRow) and self._rooms.get(row.room_nid) == row


class FilteredRooms(msgspec.Struct):
    """Those of one user's rooms that a filter lets through, in the order of all of them."""

    labels: RoomTags
    """What the user said of rooms then."""
    traits_mark: int
    """When it was known what the rooms are (`RoomTraitCache.mark`)."""
    rooms: dict[int, MembershipRow]


class RoomOrder(msgspec.Struct):
    """One user's rooms. Who reads it does so at once: it changes."""

    user_id: UserID
    upto: int
    """What came after this position is not in it."""
    generation: int
    """Of the memory of latest events that it was made from."""
    rooms: dict[int, MembershipRow] = msgspec.field(default_factory=dict)
    """Those that a list may show, by number, the one with the oldest news first."""
    unsure: list[MembershipRow] = msgspec.field(default_factory=list)
    """Those of them that it shows on conditions: the user is invited, knocks, or was removed."""
    departed: dict[int, MembershipRow] = msgspec.field(default_factory=dict)
    """Rooms that the user has left, by number: a list shows them once."""
    filtered: dict[ListFilters, FilteredRooms] = msgspec.field(default_factory=dict)
    """By the filters of lists that were asked for lately what they show of `rooms`."""


class RoomOrders:
    """Knows the order of users' rooms."""

    def __init__(
        self,
        memberships: Memberships,
        recency: RoomRecency,
        recent: RecentChanges,
        streams: Streams,
        *,
        capacity: int,
    ) -> None:
        """`capacity`: about how many rooms of all users are remembered."""
        self._memberships = memberships
        self._recency = recency
        self._recent = recent
        self._streams = streams
        self._capacity = capacity
        self._known: OrderedDict[str, RoomOrder] = OrderedDict()
        self._weight = 0
        self._version = 0
        streams.subscribe(self._on_changes, Topic.MEMBERSHIP)
        streams.watch(self._on_remote_write)

    async def of_user(self, user_id: UserID) -> RoomOrder:
        """The order of now."""
        known = self._known.get(user_id)
        if known is not None and known.generation == self._recency.generation:
            upto = self._streams.current()
            changed = self._recent.rooms_since(user_id, known.upto)
            if changed is not None:
                self._known.move_to_end(user_id)
                self._move(known, changed.events)
                known.upto = upto
                return known
        self._forget(user_id)
        while True:
            heard, upto = self._version, self._streams.current()
            rows = (await self._memberships.of_user(user_id)).values()
            latest = await self._recency.latest(
                [row.room_nid for row in rows if row.membership == "join"]
            )
            if heard == self._version:
                break
        order = _arrange(user_id, rows, latest, RoomOrder(user_id, upto, self._recency.generation))
        self._remember(user_id, order)
        return order

    def keep_filtered(
        self, order: RoomOrder, filters: ListFilters, filtered: FilteredRooms
    ) -> None:
        """Keep what filters show of an order, while that is kept; the filters that were kept first
        go when they are many."""
        is_known = self._known.get(order.user_id) is order
        former = _weigh(order)
        if len(order.filtered) >= FILTERS_KEPT and filters not in order.filtered:
            del order.filtered[next(iter(order.filtered))]
        order.filtered[filters] = filtered
        if is_known:
            self._weight += _weigh(order) - former
            self._shrink()

    def _move(self, order: RoomOrder, changed: Collection[int]) -> None:
        latest, rooms = self._recency.known, order.rooms
        moved = [nid for nid in changed if nid in rooms and rooms[nid].membership == "join"]
        if len(moved) > 1:
            moved.sort(key=lambda nid: latest.get(nid, 0))
        for nid in moved:
            rooms[nid] = rooms.pop(nid)
            for filtered in order.filtered.values():
                if nid in filtered.rooms:
                    filtered.rooms[nid] = filtered.rooms.pop(nid)

    def _remember(self, user_id: str, order: RoomOrder) -> None:
        self._forget(user_id)
        self._known[user_id] = order
        self._weight += _weigh(order)
        self._shrink()

    def _shrink(self) -> None:
        while self._weight > self._capacity and len(self._known) > 1:
            self._forget(next(iter(self._known)))

    def _forget(self, user_id: str) -> None:
        order = self._known.pop(user_id, None)
        if order is not None:
            self._weight -= _weigh(order)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.MEMBERSHIP:
                self._version += 1
                if change.user_id is not None:
                    self._forget(change.user_id)
                else:
                    self._forget_all()

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Another node wrote: where it has not said what, of whom is not known here."""
        self._version += 1
        told = self._streams.told(after, upto)
        if told is None:
            self._forget_all()
        else:
            self._on_changes(told)

    def _forget_all(self) -> None:
        self._known.clear()
        self._weight = 0


def _weigh(order: RoomOrder) -> int:
    kept = sum(len(filtered.rooms) for filtered in order.filtered.values())
    return 1 + len(order.rooms) + len(order.departed) + kept


def _arrange(
    user_id: UserID, rows: Collection[MembershipRow], latest: Mapping[int, int], order: RoomOrder
) -> RoomOrder:
    shown: list[tuple[int, MembershipRow]] = []
    for row in rows:
        if row.membership == "join":
            shown.append((latest.get(row.room_nid, 0), row))
        elif row.forgotten:
            continue
        elif row.membership in OUTSIDE or row.membership == "ban" or row.sender != user_id:
            shown.append((row.position, row))
            order.unsure.append(row)
        else:
            order.departed[row.room_nid] = row
    shown.sort(key=lambda each: each[0])
    order.rooms = {row.room_nid: row for _, row in shown}
    return order
