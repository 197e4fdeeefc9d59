"""Which rooms an answer is about: the lists with their filters and windows, and the subscriptions.

Everything comes from memory for a user who was seen before: no state is read of rooms outside the windows, and what
filters need to know of rooms is read for all of them at once.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from itertools import compress, islice
from operator import attrgetter
from typing import Final

import msgspec

from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, is_room_id
from federation.rooms.engine import RoomEngine
from federation.rooms.memberships import Memberships
from federation.rooms.room_events import RoomEvents
from federation.rooms.visible import Visibility
from homeserver.services.invite_permissions import InvitePermissions
from homeserver.services.sliding_sync.connections import Connection, ConnectionState
from homeserver.services.sliding_sync.labels import NO_TAGS, Labels, RoomLabels, RoomTraits
from homeserver.services.sliding_sync.order import OUTSIDE, NewestFirst, RoomOrder, RoomOrders
from homeserver.services.sliding_sync.recency import RoomRecency
from homeserver.services.sliding_sync.request import (
    NO_FILTERS,
    ListFilters,
    ListRequest,
    RoomConfig,
    SlidingRequest,
    merge_configs,
)
from homeserver.services.sync.invited import InvitedRooms
from storage.memberships import MembershipRow
from storage.rooms import RoomRow, RoomStore

CREATE: Final = "m.room.create"
ENCRYPTION: Final = "m.room.encryption"
SPACE_CHILD: Final = "m.space.child"
ANSWERS_REMEMBERED: Final = 100_000
_room_nid: Final = attrgetter("room_nid")
_membership: Final = attrgetter("membership")


class _Traits(msgspec.Struct, frozen=True, gc=False):
    is_encrypted: bool
    room_type: str | None
    name: str | None


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
    return max(latest.get(row.room_nid, 0), row.position) if row.membership == "join" else row.position


class RoomLists:
    """Selects rooms."""

    def __init__(
        self,
        engine: RoomEngine,
        events: RoomEvents,
        rooms: RoomStore,
        memberships: Memberships,
        visibility: Visibility,
        invited: InvitedRooms,
        permissions: InvitePermissions,
        labels: RoomLabels,
        traits: RoomTraits,
        recency: RoomRecency,
        orders: RoomOrders,
    ) -> None:
        self._engine = engine
        self._events = events
        self._rooms = rooms
        self._memberships = memberships
        self._visibility = visibility
        self._invited = invited
        self._permissions = permissions
        self._labels = labels
        self._traits = traits
        self._recency = recency
        self._orders = orders
        # whether the user had been in the room, by the number of a membership event: that never changes
        self._was_joined: OrderedDict[int, bool] = OrderedDict()

    async def select(self, request: SlidingRequest, connection: Connection) -> Selection:
        """The rooms in the windows and subscriptions of a request."""
        user_id = request.caller.user_id
        labels = await self._labels.of_user(user_id)
        counts: dict[str, int] = {}
        windows: dict[str, Sequence[int]] = {}
        listed: dict[str, Collection[MembershipRow]] = {}
        configs = _Configs()
        rows = await self._memberships.of_user(user_id)
        if request.lists:
            candidates = await self._candidates(await self._orders.of_user(user_id), connection)
            for name, wanted in request.lists.items():
                shown = await self._filter(wanted.filters, rows, candidates, labels)
                counts[name] = len(shown)
                listed[name] = shown
                windows[name] = list(map(_room_nid, _cut(wanted, shown)))
                configs.add(windows[name], wanted.config)
        subscribed = {}
        for room_id, room in (await self._rooms.get_rooms(request.subscriptions)).items():
            row = rows.get(room.room_nid)
            if row is not None and await self._may_see(row):
                subscribed[room_id] = room.room_nid
                configs.add([room.room_nid], request.subscriptions[room_id])
        rows = await self._memberships.of_user(user_id)  # it may be another mapping by now
        memberships = map(_membership, map(rows.__getitem__, configs.by_room))
        joined = frozenset(compress(configs.by_room, map("join".__eq__, memberships)))
        latest = await self.latest(joined)
        return Selection(counts, windows, listed, subscribed, configs.by_room, rows, joined, latest, labels)

    async def latest(self, room_nids: Collection[int]) -> Mapping[int, int]:
        """The positions of the newest events of rooms that the user is in, of these at least."""
        return await self._recency.latest(room_nids)

    async def was_joined(self, row: MembershipRow) -> bool:
        """Whether the user is, or ever was, in the room."""
        if row.membership == "join":
            return True
        known = self._was_joined.get(row.event_nid)
        if known is None:
            known = self._was_joined[row.event_nid] = await self._visibility.was_joined(row)
            if len(self._was_joined) > ANSWERS_REMEMBERED:
                self._was_joined.popitem(last=False)
        return known

    async def was_reset(self, row: MembershipRow) -> bool:
        """Whether the user is no longer in the room although no event says so: the resolution of a fork took them out."""
        event = (await self._events.get_events([row.event_nid])).get(row.event_nid)
        return event is not None and event.event.membership != row.membership

    async def _may_see(self, row: MembershipRow) -> bool:
        if row.forgotten or await self._permissions.hides(row):
            return False
        return row.membership in OUTSIDE or await self.was_joined(row)

    async def _candidates(self, order: RoomOrder, connection: Connection) -> Collection[MembershipRow]:
        """The rooms that a list may show, in order."""
        sent_rooms = connection.state.rooms
        # the client has to learn that the user is no longer there
        news = [
            row
            for row in (order.departed[nid] for nid in order.departed.keys() & sent_rooms.keys())
            if row.position > connection.since(sent_rooms[row.room_nid].upto)
        ]
        hidden: set[int] = set()
        removed: list[MembershipRow] = []
        for row in order.unsure:
            sent = sent_rooms.get(row.room_nid)
            if row.membership in OUTSIDE:
                if await self._permissions.hides(row):
                    hidden.add(row.room_nid)
            elif sent is None or row.position <= connection.since(sent.upto):
                removed.append(row)
        unknown = [row.event_nid for row in removed if row.event_nid not in self._was_joined]
        if unknown:
            left = await self._events.get_events(unknown)
            await self._events.get_events(event.replaces for event in left.values() if event.replaces is not None)
        hidden |= {row.room_nid for row in removed if not await self.was_joined(row)}
        if not news and not hidden:
            return NewestFirst(order.rooms)
        latest = self._recency.known
        shown = [row for row in order.rooms.values() if row.room_nid not in hidden] + news
        shown.sort(key=lambda row: news_of(row, latest), reverse=True)
        return shown

    async def _filter(
        self,
        filters: ListFilters,
        rows: Mapping[int, MembershipRow],
        candidates: Collection[MembershipRow],
        labels: Labels,
    ) -> Collection[MembershipRow]:
        if filters == NO_FILTERS:
            return candidates
        shown: Iterable[MembershipRow] = candidates
        if filters.is_invite is not None:
            shown = [row for row in shown if (row.membership == "invite") == filters.is_invite]
        if filters.is_dm is not None or filters.tags is not None or filters.not_tags is not None:
            names = await self._rooms.get_rooms_by_nid(row.room_nid for row in shown)
            shown = [row for row in shown if _has_labels(filters, names[row.room_nid], labels)]
        if filters.spaces is not None:
            children = await self._children(filters.spaces, rows)
            shown = [row for row in shown if row.room_nid in children]
        if filters.by_state:
            traits = await self._find_traits(shown)
            shown = [row for row in shown if row.room_nid in traits and _has_traits(filters, traits[row.room_nid])]
        return list(shown)

    async def _children(self, spaces: Iterable[str], rows: Mapping[int, MembershipRow]) -> set[int]:
        """The rooms that the spaces name as theirs; spaces that the user is not in do not count."""
        ids: set[str] = set()
        for room_id, room in (await self._rooms.get_rooms(spaces)).items():
            row = rows.get(room.room_nid)
            if row is None or row.membership != "join":
                continue
            snapshot = await self._engine.get_snapshot(RoomID(room_id))
            events = await self._events.get_events((await snapshot.state.load_nids(SPACE_CHILD)).values())
            ids |= {
                event.event.state_key
                for event in events.values()
                if event.event.state_key is not None
                and is_room_id(event.event.state_key)
                and isinstance(event.event.content.get("via"), list)
            }
        return {room.room_nid for room in (await self._rooms.get_rooms(ids)).values()}

    async def _find_traits(self, rows: Iterable[MembershipRow]) -> dict[int, _Traits]:
        """What the rooms are, as far as the user may know; unknown ones are missing."""
        inside = [row.room_nid for row in rows if row.membership not in OUTSIDE]
        summaries = await self._traits.of_rooms(inside)
        found = {
            nid: _Traits(summaries[nid].encryption is not None, summaries[nid].room_type, summaries[nid].name)
            for nid in inside
            if nid in summaries
        }
        for row in rows:
            if row.membership not in OUTSIDE:
                continue
            state = {event.key: event.content for event in await self._invited.get_stripped(row)}
            create = state.get(StateKey(CREATE, ""))
            if create is not None:
                room_type = create.get("type")
                name = state.get(StateKey("m.room.name", ""), {}).get("name")
                found[row.room_nid] = _Traits(
                    StateKey(ENCRYPTION, "") in state,
                    room_type if isinstance(room_type, str) else None,
                    name if isinstance(name, str) else None,
                )
        return found


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


def _has_labels(filters: ListFilters, room: RoomRow, labels: Labels) -> bool:
    if filters.is_dm is not None and (room.room_id in labels.direct) != filters.is_dm:
        return False
    tags = labels.tags.get(room.room_id, NO_TAGS)
    if filters.not_tags is not None and tags & filters.not_tags:
        return False
    return filters.tags is None or bool(tags & filters.tags)


def _has_traits(filters: ListFilters, traits: _Traits) -> bool:
    if filters.is_encrypted is not None and traits.is_encrypted != filters.is_encrypted:
        return False
    if filters.not_room_types is not None and traits.room_type in filters.not_room_types:
        return False
    if filters.room_types is not None and traits.room_type not in filters.room_types:
        return False
    return filters.name_like is None or filters.name_like.lower() in (traits.name or "").lower()
