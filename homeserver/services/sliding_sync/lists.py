"""Which rooms an answer is about: the lists with their filters and windows, and the subscriptions.

Everything comes from memory for a user who was seen before: no state is read of rooms outside the
windows.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from itertools import compress, islice
from operator import attrgetter
from typing import Final

import msgspec
from msgspec.structs import replace

from federation.protocol.ids import UserID
from federation.rooms.events import RoomEvents
from federation.rooms.memberships import Memberships
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.sliding_sync.connections import Connection, ConnectionState
from homeserver.services.sliding_sync.filters import RoomFilters
from homeserver.services.sliding_sync.labels import Labels, RoomLabels
from homeserver.services.sliding_sync.order import OUTSIDE, NewestFirst, RoomOrder, RoomOrders
from homeserver.services.sliding_sync.recency import RoomRecency
from homeserver.services.sliding_sync.request import (
    NO_FILTERS,
    ListRequest,
    RoomConfig,
    SlidingRequest,
    merge_configs,
)
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomStore

_room_nid: Final = attrgetter("room_nid")
_membership: Final = attrgetter("membership")


class Selection(msgspec.Struct, frozen=True, gc=False):
    """The rooms that a request names."""

    counts: Mapping[str, int]
    windows: Mapping[str, Sequence[int]]
    """By list the numbers of the rooms in its ranges, in order."""
    listed: Mapping[str, Collection[MembershipRow]]
    """By list all rooms that it shows, in its ranges or not."""
    subscribed: Mapping[str, int]
    """Numbers of the subscribed rooms by id."""
    configs: Mapping[int, RoomConfig]
    """What is wanted of each room; of many the same object."""
    rows: Mapping[int, MembershipRow]
    joined: frozenset[int]
    """Those of the rooms in `configs` that the user is in."""
    latest: Mapping[int, int]
    """Position of the newest event by room, for the rooms in `configs`."""
    labels: Labels
    lasts: bool
    """Whether all of these rooms are still shown after the client was told of them: some that the
    user is no longer in are shown once."""

    def without(self, room_nids: Set[int]) -> "Selection":
        """The same, but these rooms are not in the windows, nor subscribed."""
        return replace(
            self,
            windows={
                name: [nid for nid in window if nid not in room_nids]
                for name, window in self.windows.items()
            },
            subscribed={
                room_id: nid for room_id, nid in self.subscribed.items() if nid not in room_nids
            },
        )

    def to_look_at(self, state: ConnectionState, changed: Set[int] | None) -> Sequence[int]:
        """The rooms in which there may be something to tell to who has this.

        `changed`: those in which something is new; None where that is not known.
        """
        configs = self.configs
        if changed is None or not configs:
            return list(configs)
        first = next(iter(configs.values()))  # mostly what is wanted of all of them
        wanted = (configs.keys() & changed) | (configs.keys() - state.settled(first))
        if len(set(map(id, configs.values()))) > 1:
            wanted |= {nid for nid, config in configs.items() if config is not first}
        return list(filter(wanted.__contains__, configs)) if wanted else ()


def news_of(row: MembershipRow, latest: Mapping[int, int]) -> int:
    """The position of the latest thing that the user may hear of in a room."""
    return (
        max(latest.get(row.room_nid, 0), row.position) if row.membership == "join" else row.position
    )


def was_inside(row: MembershipRow) -> bool:
    """Whether the user may know the room from inside: neither invited nor knocking, they are or
    were in it."""
    return row.membership not in OUTSIDE and row.was_joined


def _stays(row: MembershipRow) -> bool:
    """Whether the room is still shown after it was told: of an invite or a knock of theirs people
    are told once that it came to nothing."""
    return row.membership in OUTSIDE or row.was_joined


class RoomLists:
    """Selects rooms."""

    def __init__(
        self,
        events: RoomEvents,
        rooms: RoomStore,
        memberships: Memberships,
        permissions: InvitePermissions,
        labels: RoomLabels,
        recency: RoomRecency,
        orders: RoomOrders,
        filters: RoomFilters,
    ) -> None:
        self._events = events
        self._rooms = rooms
        self._memberships = memberships
        self._permissions = permissions
        self._labels = labels
        self._recency = recency
        self._orders = orders
        self._filters = filters

    async def select(self, request: SlidingRequest, connection: Connection) -> Selection:
        """The rooms in the windows and subscriptions of a request."""
        user_id = request.caller.user_id
        labels = await self._labels.of_user(user_id)
        counts: dict[str, int] = {}
        windows: dict[str, Sequence[int]] = {}
        listed: dict[str, Collection[MembershipRow]] = {}
        configs = _Configs()
        lasts = True
        rows = await self._memberships.of_user(user_id)
        if request.lists:
            order = await self._orders.of_user(user_id)
            candidates, lasts = await self._candidates(order, connection)
            for name, wanted in request.lists.items():
                shown = await self._filters.filter(wanted.filters, order, candidates, rows, labels)
                counts[name] = len(shown)
                listed[name] = shown
                windows[name] = list(map(_room_nid, _cut(wanted, shown)))
                configs.add(windows[name], wanted.config)
        subscribed = {}
        for room_id, room in (await self._rooms.get_rooms(request.subscriptions)).items():
            row = rows.get(room.room_nid)
            if row is not None and await self._may_see(row, connection):
                subscribed[room_id] = room.room_nid
                lasts = lasts and _stays(row)
                configs.add([room.room_nid], request.subscriptions[room_id])
        rows = await self._memberships.of_user(user_id)  # it may be another mapping by now
        memberships = map(_membership, map(rows.__getitem__, configs.by_room))
        joined = frozenset(compress(configs.by_room, map("join".__eq__, memberships)))
        latest = await self.latest(joined)
        return Selection(
            counts,
            windows,
            listed,
            subscribed,
            configs.by_room,
            rows,
            joined,
            latest,
            labels,
            lasts,
        )

    async def front(
        self, user_id: UserID, wanted: ListRequest, labels: Labels
    ) -> Iterable[int] | None:
        """The numbers of the rooms in the window of a list that begins with the first room. For who
        was told all that the list shows, since when nothing has happened but messages, nor to the
        user's labels; None where it takes more to know them.
        """
        order = await self._orders.of_user(user_id)
        rooms = order.rooms
        if wanted.filters != NO_FILTERS:
            kept = order.filtered.get(wanted.filters)
            if kept is None or kept.labels is not labels:
                return None
            rooms = kept.rooms
        if (
            order.unsure
            or wanted.ranges is None
            or len(wanted.ranges) != 1
            or wanted.ranges[0][0] != 0
        ):
            return None
        return islice(reversed(rooms), wanted.ranges[0][1] + 1)

    async def latest(self, room_nids: Collection[int]) -> Mapping[int, int]:
        """The positions of the newest events of rooms that the user is in, of these at least."""
        return await self._recency.latest(room_nids)

    async def was_reset(self, row: MembershipRow) -> bool:
        """Whether the user is no longer in the room although no event says so: the resolution of a
        fork took them out."""
        event = (await self._events.get_events([row.event_nid])).get(row.event_nid)
        return event is not None and event.event.membership != row.membership

    async def _may_see(self, row: MembershipRow, connection: Connection) -> bool:
        if row.forgotten or await self._permissions.hides(row):
            return False
        if _stays(row):
            return True
        sent = connection.state.rooms.get(row.room_nid)
        return sent is not None and row.position > connection.since(sent.upto)

    async def _candidates(
        self, order: RoomOrder, connection: Connection
    ) -> tuple[Collection[MembershipRow], bool]:
        """The rooms that a list may show, in order; and whether it may show them all once the
        client was told of them."""
        sent_rooms = connection.state.rooms
        # the client has to learn that the user is no longer there
        news = [
            row
            for row in (order.departed[nid] for nid in order.departed.keys() & sent_rooms.keys())
            if row.position > connection.since(sent_rooms[row.room_nid].upto)
        ]
        hidden: set[int] = set()
        removed: list[MembershipRow] = []
        lasts = not news
        for row in order.unsure:
            sent = sent_rooms.get(row.room_nid)
            if row.membership in OUTSIDE:
                if await self._permissions.hides(row):
                    hidden.add(row.room_nid)
            elif sent is None or row.position <= connection.since(sent.upto):
                removed.append(row)
            else:
                lasts = False
        hidden |= {row.room_nid for row in removed if not row.was_joined}
        if not news and not hidden:
            return NewestFirst(order.rooms), lasts
        latest = self._recency.known
        shown = [row for row in order.rooms.values() if row.room_nid not in hidden] + news
        shown.sort(key=lambda row: news_of(row, latest), reverse=True)
        return shown, lasts


class _Configs:
    """What is wanted of rooms. Rooms that are in the same lists share one object."""

    def __init__(self) -> None:
        self.by_room: dict[int, RoomConfig] = {}
        self._merged: dict[tuple[int, int], RoomConfig] = {}

    def add(self, room_nids: Sequence[int], config: RoomConfig) -> None:
        """This is wanted of the rooms, beside what was wanted of them already."""
        if not self.by_room:
            self.by_room = dict.fromkeys(room_nids, config)
            return
        for nid in room_nids:
            former = self.by_room.get(nid)
            self.by_room[nid] = config if former is None else self._merge(former, config)

    def _merge(self, former: RoomConfig, config: RoomConfig) -> RoomConfig:
        key = (id(former), id(config))  # both are held: by the request, or in here
        if key not in self._merged:
            self._merged[key] = merge_configs([former, config])
        return self._merged[key]


def _cut(wanted: ListRequest, rows: Collection[MembershipRow]) -> list[MembershipRow]:
    if wanted.ranges is None:
        return list(rows)
    if len(wanted.ranges) == 1:
        ((first, last),) = wanted.ranges
        return list(islice(rows, first, last + 1))
    within: dict[int, MembershipRow] = {}
    for first, last in wanted.ranges:
        within.update((row.room_nid, row) for row in islice(rows, first, last + 1))
    return list(within.values())
