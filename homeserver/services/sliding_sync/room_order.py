"""Caches each user's rooms, ordered by latest event, for the lists of sliding sync.

When an order is read, only the rooms that changed since the last read are moved. So the cost of a
list does not grow with the number of the user's rooms. An order is a dictionary, which keeps the
order of insertion: a room with a new event moves to the end, and the room that has had no new event
for the longest time comes first. Use this module only on the reactor thread.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.memberships import Memberships
from homeserver.services.sliding_sync.filter_data import RoomTags
from homeserver.services.sliding_sync.request import ListFilters
from homeserver.services.sliding_sync.room_recency import RoomRecency
from homeserver.services.streams.recent_changes import RecentChanges
from storage.cache import StreamCache, drop_oldest
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow

INVITED_OR_KNOCKING: Final = frozenset({"invite", "knock"})
MAX_FILTERS: Final = 8
"""Cached filters of one user: clients have a few lists and ask for the same ones again and
again."""


class NewestFirst(Collection[MembershipRow]):
    """The rooms of an order, the newest first."""

    def __init__(self, rooms: dict[int, MembershipRow]) -> None:
        self._rooms = rooms

    def __len__(self) -> int:
        return len(self._rooms)

    def __iter__(self) -> Iterator[MembershipRow]:
        return reversed(self._rooms.values())

    def __contains__(self, row: object) -> bool:
        return isinstance(row, MembershipRow) and self._rooms.get(row.room_nid) == row


class FilteredRooms(msgspec.Struct):
    """The rooms of a user that pass a filter, in the same order."""

    labels: RoomTags
    """The user's tags and direct chats at that time."""
    traits_cursor: int
    """The state of `RoomTraitCache` from which the rooms were filtered
    (`RoomTraitCache.cursor`)."""
    rooms: dict[int, MembershipRow]


class RoomOrder(msgspec.Struct):
    """The rooms of one user. It changes, so read it without waiting in between."""

    user_id: UserID
    upto: int
    """The position up to which changes are applied."""
    generation: int
    """The generation of `RoomRecency` that it was made from."""
    rooms: dict[int, MembershipRow] = msgspec.field(default_factory=dict)
    """The rooms that a list may show, by number, the one with the oldest event first."""
    conditional: list[MembershipRow] = msgspec.field(default_factory=list)
    """The rooms that are shown on conditions: the user is invited, knocks, or was removed."""
    left: dict[int, MembershipRow] = msgspec.field(default_factory=dict)
    """Rooms that the user left, by number: a list shows them once."""
    filtered: dict[ListFilters, FilteredRooms] = msgspec.field(default_factory=dict)
    """The rooms that pass each of the latest filters."""


class RoomOrders:
    """Caches the orders of users' rooms."""

    def __init__(
        self,
        *,
        memberships: Memberships,
        recency: RoomRecency,
        recent: RecentChanges,
        streams: Streams,
        capacity: int,
    ) -> None:
        """`capacity`: the number of rooms in all orders, about."""
        self._memberships = memberships
        self._recency = recency
        self._recent = recent
        self._streams = streams
        self._orders: StreamCache[UserID, RoomOrder] = StreamCache(
            streams,
            Topic.MEMBERSHIP,
            load=self._load,
            keys_of=_users_of,
            max_weight=capacity,
            weigh=lambda _, order: _weigh(order),
        )

    async def of_user(self, user_id: UserID) -> RoomOrder:
        """Return the current order."""
        while True:
            order = await self._orders.get(user_id)
            if order.generation == self._recency.generation:
                upto = self._streams.current()
                changed = self._recent.rooms_since(user_id, order.upto)
                if changed is not None:
                    self._move(order, changed.events)
                    order.upto = upto
                    return order
            self._orders.invalidate(user_id)

    async def _load(self, user_ids: Sequence[UserID]) -> Mapping[UserID, RoomOrder]:
        return {user_id: await self._load_user(user_id) for user_id in user_ids}

    async def _load_user(self, user_id: UserID) -> RoomOrder:
        upto = self._streams.current()
        rows = (await self._memberships.of_user(user_id)).values()
        latest = await self._recency.latest(
            [row.room_nid for row in rows if row.membership == "join"]
        )
        return _arrange(user_id, rows, latest, RoomOrder(user_id, upto, self._recency.generation))

    def cache_filtered(
        self, order: RoomOrder, filters: ListFilters, filtered: FilteredRooms
    ) -> None:
        """Cache the result of a filter with its order; the oldest filter is dropped if there are
        too many."""
        order.filtered[filters] = filtered
        drop_oldest(order.filtered, MAX_FILTERS)
        self._orders.reweigh(order.user_id)

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


def _users_of(change: Change) -> Sequence[UserID] | None:
    return None if change.user_id is None else (UserID(change.user_id),)


def _weigh(order: RoomOrder) -> int:
    filtered_count = sum(len(filtered.rooms) for filtered in order.filtered.values())
    return 1 + len(order.rooms) + len(order.left) + filtered_count


def _arrange(
    user_id: UserID, rows: Collection[MembershipRow], latest: Mapping[int, int], order: RoomOrder
) -> RoomOrder:
    shown: list[tuple[int, MembershipRow]] = []
    for row in rows:
        if row.membership == "join":
            shown.append((latest.get(row.room_nid, 0), row))
        elif row.forgotten:
            continue
        elif (
            row.membership in INVITED_OR_KNOCKING
            or row.membership == "ban"
            or row.sender != user_id
        ):
            shown.append((row.position, row))
            order.conditional.append(row)
        else:
            order.left[row.room_nid] = row
    shown.sort(key=lambda each: each[0])
    order.rooms = {row.room_nid: row for _, row in shown}
    return order
