"""Selects the rooms of a request: lists with their filters and windows, and room subscriptions.

If the user's room order is cached, a list without filters needs no query. The state of rooms
outside the windows is read only for filters.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from itertools import compress, islice
from operator import attrgetter
from typing import Final

import msgspec
from msgspec.structs import replace

from federation.rooms.events import RoomEvents
from federation.rooms.memberships import Memberships
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.sliding_sync.connections import ConnectionState, SlidingConnection
from homeserver.services.sliding_sync.filter_data import RoomTagCache, RoomTags
from homeserver.services.sliding_sync.filters import RoomFilters
from homeserver.services.sliding_sync.request import (
    ListRequest,
    RoomConfig,
    SlidingRequest,
    merge_configs,
)
from homeserver.services.sliding_sync.room_order import (
    INVITED_OR_KNOCKING,
    NewestFirst,
    RoomOrder,
    RoomOrders,
)
from homeserver.services.sliding_sync.room_recency import RoomRecency
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomStore

_room_nid: Final = attrgetter("room_nid")
_membership: Final = attrgetter("membership")


class RoomSelection(msgspec.Struct, frozen=True, gc=False):
    """The rooms of a request."""

    counts: Mapping[str, int]
    """The number of rooms in each list."""
    windows: Mapping[str, Sequence[int]]
    """The numbers of the rooms in the ranges of each list, in order."""
    listed: Mapping[str, Collection[MembershipRow]]
    """All rooms of each list, in its ranges or not."""
    subscribed: Mapping[str, int]
    """The numbers of the subscribed rooms, by ID."""
    configs: Mapping[int, RoomConfig]
    """The config of each room in a window or subscription; many share one object."""
    rows: Mapping[int, MembershipRow]
    """The user's memberships."""
    joined: frozenset[int]
    """The rooms in `configs` that the user is joined to."""
    latest: Mapping[int, int]
    """The position of the newest event, of the rooms in `configs`."""
    labels: RoomTags

    def without(self, room_nids: Set[int]) -> "RoomSelection":
        """Return a selection in which these rooms are neither in a window nor subscribed."""
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

    def lists_of(self, room_nids: Set[int]) -> dict[int, list[str]]:
        """Return the lists in whose windows the rooms are."""
        names: dict[int, list[str]] = {}
        for name, window in self.windows.items():
            for nid in window:
                if nid in room_nids:
                    names.setdefault(nid, []).append(name)
        return names

    def rooms_to_check(self, state: ConnectionState, changed: Set[int] | None) -> Sequence[int]:
        """Return the rooms in which a client with this state may lack something.

        `changed`: the rooms with new events; None if that is not known.
        """
        configs = self.configs
        if changed is None or not configs:
            return list(configs)
        first = next(iter(configs.values()))  # mostly the config of all rooms
        wanted = (configs.keys() & changed) | (configs.keys() - state.complete_rooms(first))
        if len(set(map(id, configs.values()))) > 1:
            wanted |= {nid for nid, config in configs.items() if config is not first}
        return list(filter(wanted.__contains__, configs)) if wanted else ()


def latest_change(row: MembershipRow, latest: Mapping[int, int]) -> int:
    """Return the position of the latest change that the user sees in a room."""
    return (
        max(latest.get(row.room_nid, 0), row.position) if row.membership == "join" else row.position
    )


def knows_room(row: MembershipRow) -> bool:
    """Whether the user is or was in the room, and is not invited or knocking now."""
    return row.membership not in INVITED_OR_KNOCKING and row.was_joined


def _stays_listed(row: MembershipRow) -> bool:
    """Whether the room stays in lists: the end of an invite or knock is shown only once."""
    return row.membership in INVITED_OR_KNOCKING or row.was_joined


class RoomLists:
    """Selects rooms."""

    def __init__(
        self,
        *,
        events: RoomEvents,
        rooms: RoomStore,
        memberships: Memberships,
        permissions: InvitePermissions,
        labels: RoomTagCache,
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

    async def select(self, request: SlidingRequest, connection: SlidingConnection) -> RoomSelection:
        """Select the rooms in the windows and subscriptions of a request."""
        user_id = request.caller.user_id
        labels = await self._labels.of_user(user_id)
        counts: dict[str, int] = {}
        windows: dict[str, Sequence[int]] = {}
        listed: dict[str, Collection[MembershipRow]] = {}
        configs = _Configs()
        rows = await self._memberships.of_user(user_id)
        if request.lists:
            order = await self._orders.of_user(user_id)
            candidates = await self._candidates(order, connection)
            for name, wanted in request.lists.items():
                shown = await self._filters.filter(wanted.filters, order, candidates, rows, labels)
                counts[name] = len(shown)
                listed[name] = shown
                windows[name] = list(map(_room_nid, _select_ranges(wanted, shown)))
                configs.add(windows[name], wanted.config)
        subscribed = {}
        for room_id, room in (await self._rooms.get_rooms(request.subscriptions)).items():
            row = rows.get(room.room_nid)
            if row is not None and await self._may_see(row, connection):
                subscribed[room_id] = room.room_nid
                configs.add([room.room_nid], request.subscriptions[room_id])
        rows = await self._memberships.of_user(user_id)  # the mapping may have been replaced
        memberships = map(_membership, map(rows.__getitem__, configs.by_room))
        joined = frozenset(compress(configs.by_room, map("join".__eq__, memberships)))
        latest = await self.latest(joined)
        return RoomSelection(
            counts, windows, listed, subscribed, configs.by_room, rows, joined, latest, labels
        )

    async def latest(self, room_nids: Collection[int]) -> Mapping[int, int]:
        """Return the positions of the newest events, of these rooms at least."""
        return await self._recency.latest(room_nids)

    async def was_reset(self, row: MembershipRow) -> bool:
        """Whether state resolution took the user out of the room, without an event that says so."""
        event = (await self._events.get_events([row.event_nid])).get(row.event_nid)
        return event is not None and event.event.membership != row.membership

    async def _may_see(self, row: MembershipRow, connection: SlidingConnection) -> bool:
        if row.forgotten or await self._permissions.hides(row):
            return False
        if _stays_listed(row):
            return True
        return _is_newer(row, connection)

    async def _candidates(
        self, order: RoomOrder, connection: SlidingConnection
    ) -> Collection[MembershipRow]:
        """Return the rooms that a list may show, in order."""
        sent_rooms = connection.state.rooms
        # the client has to learn that the user has left
        left = [
            row
            for row in (order.left[nid] for nid in order.left.keys() & sent_rooms.keys())
            if _is_newer(row, connection)
        ]
        hidden: set[int] = set()
        for row in order.conditional:
            if row.membership in INVITED_OR_KNOCKING:
                if await self._permissions.hides(row):
                    hidden.add(row.room_nid)
            elif not row.was_joined and not _is_newer(row, connection):
                hidden.add(row.room_nid)
        if not left and not hidden:
            return NewestFirst(order.rooms)
        latest = self._recency.known
        shown = [row for row in order.rooms.values() if row.room_nid not in hidden] + left
        shown.sort(key=lambda row: latest_change(row, latest), reverse=True)
        return shown


def _is_newer(row: MembershipRow, connection: SlidingConnection) -> bool:
    """Whether the client has the room, and not yet this membership."""
    sent = connection.state.rooms.get(row.room_nid)
    return sent is not None and row.position > connection.since(sent.upto)


class _Configs:
    """The configs of rooms. Rooms in the same lists share one object."""

    def __init__(self) -> None:
        self.by_room: dict[int, RoomConfig] = {}
        self._merged: dict[tuple[int, int], RoomConfig] = {}

    def add(self, room_nids: Sequence[int], config: RoomConfig) -> None:
        """Add a config to those of the rooms."""
        if not self.by_room:
            self.by_room = dict.fromkeys(room_nids, config)
            return
        for nid in room_nids:
            former = self.by_room.get(nid)
            self.by_room[nid] = config if former is None else self._merge(former, config)

    def _merge(self, former: RoomConfig, config: RoomConfig) -> RoomConfig:
        key = (id(former), id(config))  # both are kept alive: by the request, or in here
        if key not in self._merged:
            self._merged[key] = merge_configs([former, config])
        return self._merged[key]


def _select_ranges(wanted: ListRequest, rows: Collection[MembershipRow]) -> list[MembershipRow]:
    if wanted.ranges is None:
        return list(rows)
    if len(wanted.ranges) == 1:
        ((first, last),) = wanted.ranges
        return list(islice(rows, first, last + 1))
    selected: dict[int, MembershipRow] = {}
    for first, last in wanted.ranges:
        selected.update((row.room_nid, row) for row in islice(rows, first, last + 1))
    return list(selected.values())
