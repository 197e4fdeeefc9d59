"""Applies the filters of lists to a user's rooms.

The result is cached with the order of the user's rooms (`room_order.py`) and updated with it. So a
list with filters usually costs no more than one without. All rooms are filtered each time in two
cases: if a filter names spaces, and while the list differs from the cached order, for example
because it shows a room that the user has just left. A room that the user has left is filtered by
its state at that time. Use this module only on the reactor thread.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, is_room_id
from federation.rooms.current_states import CurrentStates
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents
from homeserver.services.rooms.invited_rooms import InvitedRooms
from homeserver.services.sliding_sync.filter_data import (
    CREATE,
    ENCRYPTION,
    NAME,
    NO_TAGS,
    TRAITS,
    RoomTags,
    RoomTraitCache,
)
from homeserver.services.sliding_sync.request import NO_FILTERS, ListFilters
from homeserver.services.sliding_sync.room_order import (
    INVITED_OR_KNOCKING,
    FilteredRooms,
    NewestFirst,
    RoomOrder,
    RoomOrders,
)
from homeserver.services.sync.rooms import LEFT
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomRow, RoomStore

SPACE_CHILD: Final = "m.space.child"


class _Traits(msgspec.Struct, frozen=True, gc=False):
    is_encrypted: bool
    room_type: str | None
    name: str | None


class RoomFilters:
    """Applies filters."""

    def __init__(
        self,
        *,
        engine: RoomEngine,
        events: RoomEvents,
        rooms: RoomStore,
        invited: InvitedRooms,
        states: CurrentStates,
        traits: RoomTraitCache,
        orders: RoomOrders,
    ) -> None:
        self._engine = engine
        self._events = events
        self._rooms = rooms
        self._invited = invited
        self._states = states
        self._traits = traits
        self._orders = orders

    async def filter(
        self,
        filters: ListFilters,
        order: RoomOrder,
        candidates: Collection[MembershipRow],
        rows: Mapping[int, MembershipRow],
        labels: RoomTags,
    ) -> Collection[MembershipRow]:
        """Return the rooms that pass the filters, in order. `rows`: the user's memberships."""
        if filters == NO_FILTERS:
            return candidates
        if filters.spaces is None and isinstance(candidates, NewestFirst):  # all rooms of the user
            return NewestFirst(await self._filter_all(filters, order, labels))
        shown, _ = await self._match(filters, candidates, labels)
        if filters.spaces is not None:
            children = await self._children(filters.spaces, rows)
            shown = [row for row in shown if row.room_nid in children]
        return shown

    async def _filter_all(
        self, filters: ListFilters, order: RoomOrder, labels: RoomTags
    ) -> dict[int, MembershipRow]:
        cached = order.filtered.get(filters)
        if cached is not None and cached.labels is labels:
            changed = self._traits.changed_since(cached.traits_cursor, _types(filters))
            if changed is not None and changed.isdisjoint(order.rooms):
                cached.traits_cursor = self._traits.cursor()
                return cached.rooms
        cursor = self._traits.cursor()
        shown, is_complete = await self._match(filters, list(order.rooms.values()), labels)
        numbers = {row.room_nid for row in shown}
        rooms = {
            nid: row for nid, row in order.rooms.items() if nid in numbers
        }  # the order may have changed in the meantime
        if is_complete:
            self._orders.cache_filtered(order, filters, FilteredRooms(labels, cursor, rooms))
        return rooms

    async def _match(
        self, filters: ListFilters, candidates: Collection[MembershipRow], labels: RoomTags
    ) -> tuple[list[MembershipRow], bool]:
        """Apply all filters except spaces. Returns whether every room was known well enough,
        too."""
        shown = list(candidates)
        is_complete = True
        if filters.is_invite is not None:
            shown = [row for row in shown if (row.membership == "invite") == filters.is_invite]
        if filters.by_account_data:
            names = await self._rooms.get_rooms_by_nid(row.room_nid for row in shown)
            shown = [row for row in shown if _has_labels(filters, names[row.room_nid], labels)]
        if filters.by_state:
            traits = await self._find_traits(shown)
            is_complete = all(
                row.room_nid in traits or row.membership in INVITED_OR_KNOCKING for row in shown
            )
            shown = [
                row
                for row in shown
                if row.room_nid in traits and _has_traits(filters, traits[row.room_nid])
            ]
        return shown, is_complete

    async def _children(self, spaces: Iterable[str], rows: Mapping[int, MembershipRow]) -> set[int]:
        """Return the children of the spaces that the user is in."""
        ids: set[str] = set()
        for room_id, room in (await self._rooms.get_rooms(spaces)).items():
            row = rows.get(room.room_nid)
            if row is None or row.membership != "join":
                continue
            snapshot = await self._engine.get_snapshot(RoomID(room_id))
            events = await self._events.get_events(
                (await snapshot.state.load_nids(SPACE_CHILD)).values()
            )
            ids |= {
                event.event.state_key
                for event in events.values()
                if event.event.state_key is not None
                and is_room_id(event.event.state_key)
                and isinstance(event.event.content.get("via"), list)
            }
        return {room.room_nid for room in (await self._rooms.get_rooms(ids)).values()}

    async def _find_traits(self, rows: Iterable[MembershipRow]) -> dict[int, _Traits]:
        """Return the traits of the rooms that the user may know; unknown rooms are missing."""
        inside = [row.room_nid for row in rows if row.membership == "join"]
        summaries = await self._traits.of_rooms(inside)
        found = {
            nid: _Traits(
                summaries[nid].encryption is not None, summaries[nid].room_type, summaries[nid].name
            )
            for nid in inside
            if nid in summaries
        }
        for row in rows:
            if row.membership in INVITED_OR_KNOCKING:
                state = {
                    event.key: event.content for event in await self._invited.get_stripped(row)
                }
                if StateKey(CREATE, "") in state:
                    found[row.room_nid] = _read_traits(state)
        found.update(
            await self._find_former_traits([row for row in rows if row.membership in LEFT])
        )
        return found

    async def _find_former_traits(self, left: Sequence[MembershipRow]) -> dict[int, _Traits]:
        """Return the traits of rooms at the time the user left; empty for rooms that they were
        never in."""
        ends = {row.room_nid: row.left_position for row in left}
        roots = await self._states.at({nid: end for nid, end in ends.items() if end is not None})
        found = {nid: _Traits(False, None, None) for nid in ends}
        keys = [StateKey(type, "") for type in TRAITS]
        for nid, root in roots.items():
            state = await self._engine.view(nid, root).load(keys)
            found[nid] = _read_traits({key: event.event.content for key, event in state.items()})
        return found


def _read_traits(state: Mapping[StateKey, Mapping[str, Any]]) -> _Traits:
    room_type = state.get(StateKey(CREATE, ""), {}).get("type")
    name = state.get(StateKey(NAME, ""), {}).get("name")
    return _Traits(
        StateKey(ENCRYPTION, "") in state,
        room_type if isinstance(room_type, str) else None,
        name if isinstance(name, str) else None,
    )


def _types(filters: ListFilters) -> frozenset[str]:
    """The types of state events that a filter depends on."""
    types = set()
    if filters.room_types is not None or filters.not_room_types is not None:
        types.add(CREATE)
    if filters.is_encrypted is not None:
        types.add(ENCRYPTION)
    if filters.name_like is not None:
        types.add(NAME)
    return frozenset(types)


def _has_labels(filters: ListFilters, room: RoomRow, labels: RoomTags) -> bool:
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
