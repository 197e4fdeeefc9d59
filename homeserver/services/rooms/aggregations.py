"""Aggregations of an event's children, sent with the event: its latest edit, its thread,
references.

Laws:
- One query finds the events of a page that have children. For a page without children it is the
  only query, and the result is cached.
- Children are left out if the reader may not see them, or ignores their sender.
- The count of a thread also leaves out events of ignored senders. It includes other events that the
  reader may not see, as in the specification, but none from after the reader left the room.

spec: client-server-api#aggregations-of-child-events
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, compress
from operator import attrgetter, not_
from typing import Final

import msgspec

from federation.protocol.ids import EventID, UserID
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.memberships import Memberships
from federation.rooms.relations import read_relation
from federation.rooms.visibility import Visibility, VisibleEvent
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.filters.event_filters import RoomEventFilter
from homeserver.services.rooms.no_relations_cache import NoRelationsCache
from storage.events.relations import REFERENCE, REPLACE, THREAD, Children, Parent, RelationStore

_event_id: Final = attrgetter("event.event_id")


class ThreadAggregation(msgspec.Struct, frozen=True, gc=False):
    """The aggregation of a thread, bundled with its root."""

    latest: VisibleEvent
    count: int
    participated: bool


class Aggregation(msgspec.Struct, frozen=True, gc=False):
    """The aggregations of one event."""

    edit: VisibleEvent | None
    thread: ThreadAggregation | None
    references: Sequence[EventID]


class Aggregations:
    """Loads the aggregations for pages of events."""

    def __init__(
        self,
        *,
        store: RelationStore,
        events: RoomEvents,
        memberships: Memberships,
        visibility: Visibility,
        ignored_users: IgnoredUsers,
        no_relations_cache: NoRelationsCache,
    ) -> None:
        self._store = store
        self._events = events
        self._memberships = memberships
        self._visibility = visibility
        self._ignored = ignored_users
        self._no_relations = no_relations_cache

    async def load(self, user_id: UserID, events: Sequence[StoredEvent]) -> dict[int, Aggregation]:
        """Return the aggregations by event number, for those of the events that have any."""
        parents = {event.nid: event for event in self._find_parents(events)}
        if not parents:
            return {}
        ignored = await self._ignored.of_user(user_id)
        version = self._no_relations.version
        types = await self._store.find_parents([event.event.event_id for event in parents.values()])
        rel_types = set(chain.from_iterable(types.values()))
        children: Mapping[int, Sequence[Children]] = {}
        if types:
            with_children = [
                _as_parent(event) for event in parents.values() if event.event.event_id in types
            ]
            children = await self._store.get_children(with_children, rel_types, user_id, ignored)
        if not ignored:
            self._no_relations.add(
                [event.event.event_id for nid, event in parents.items() if nid not in children],
                version,
            )
        if not children:
            return {}
        seen = await self._see_children(user_id, children)
        left = await self._left_before(user_id, parents, children, seen)
        if left:
            with_children = [_as_parent(parents[nid]) for nid in left]
            former = await self._store.get_children(
                with_children, rel_types, user_id, ignored, left
            )
            children = {
                nid: former.get(nid, []) if nid in left else groups
                for nid, groups in children.items()
            }
            seen |= await self._see_children(user_id, former)
        found: dict[int, Aggregation] = {}
        for nid, groups in children.items():
            aggregation = _aggregate(user_id, parents[nid], groups, seen)
            if (
                aggregation.edit is not None
                or aggregation.thread is not None
                or aggregation.references
            ):
                found[nid] = aggregation
        return found

    def _find_parents(self, events: Sequence[StoredEvent]) -> Iterator[StoredEvent]:
        """Return the events that may have children, by what is cached."""
        without_relations = map(self._no_relations.event_ids.__contains__, map(_event_id, events))
        for event in compress(events, map(not_, without_relations)):
            if event.event.state_key is None and not self._no_relations.is_new_without_relations(
                event
            ):
                yield event

    async def _see_children(
        self, user_id: UserID, children: Mapping[int, Sequence[Children]]
    ) -> dict[int, VisibleEvent]:
        return await self.get_visible(
            user_id, [nid for each in children.values() for group in each for nid in group.nids]
        )

    async def _left_before(
        self,
        user_id: UserID,
        parents: Mapping[int, StoredEvent],
        children: Mapping[int, Sequence[Children]],
        seen: Mapping[int, VisibleEvent],
    ) -> dict[int, int]:
        """Return the parents that have children which were sent after the reader left the room and
        which they may not see, with the position at which the reader left."""
        own = await self._memberships.of_user(user_id)
        return {
            nid: row.left_position
            for nid, groups in children.items()
            if (row := own.get(parents[nid].room_nid)) is not None
            and row.left_position is not None
            and any(group.nids[0] not in seen for group in groups if group.rel_type != REFERENCE)
        }

    async def filter_by_relations(
        self, seen: Sequence[VisibleEvent], wanted: RoomEventFilter
    ) -> list[VisibleEvent]:
        """Return those of the events that have the children which the filter asks for."""
        if not wanted.filters_by_relation or not seen:
            return list(seen)
        nids = await self._store.get_related(
            [each.event.nid for each in seen],
            wanted.related_by_senders,
            wanted.related_by_rel_types,
        )
        return [each for each in seen if each.event.nid in nids]

    async def get_visible(self, user_id: UserID, nids: Collection[int]) -> dict[int, VisibleEvent]:
        """Return those of the events that the user may see. The events may be in any rooms."""
        own = await self._memberships.of_user(user_id)
        rooms: dict[int, list[StoredEvent]] = {}
        for event in (await self._events.get_events(nids)).values():
            rooms.setdefault(event.room_nid, []).append(event)
        return {
            seen.event.nid: seen
            for room_nid, events in rooms.items()
            for seen in await self._visibility.filter(user_id, own.get(room_nid), events)
        }

    async def remove_erased_content(
        self, user_id: UserID, events: Mapping[int, StoredEvent]
    ) -> Mapping[int, StoredEvent]:
        """Return the events, of any rooms and by number, without the content of those whose
        sender's account was erased before the user joined. The user may see all of them."""
        if not events:
            return events
        own = await self._memberships.of_user(user_id)
        rooms: dict[int, list[VisibleEvent]] = {}
        for event in events.values():
            rooms.setdefault(event.room_nid, []).append(VisibleEvent(event, "leave"))
        return {
            seen.event.nid: seen.event
            for room_nid, each in rooms.items()
            for seen in await self._visibility.without_erased(own.get(room_nid), each)
        }


def _as_parent(event: StoredEvent) -> Parent:
    return Parent(
        event.nid, event.event.event_id, event.room_nid, event.event.type, event.event.sender
    )


def _aggregate(
    user_id: UserID, parent: StoredEvent, groups: Sequence[Children], seen: dict[int, VisibleEvent]
) -> Aggregation:
    edit: VisibleEvent | None = None
    thread: ThreadAggregation | None = None
    references: list[EventID] = []
    own_relation = read_relation(parent.event)
    for group in groups:
        shown = [seen[nid] for nid in group.nids if nid in seen]
        if not shown:
            continue
        if group.rel_type == REFERENCE:
            references = [each.event.event.event_id for each in shown]
        elif group.rel_type == THREAD:
            participated = group.has_own or parent.event.sender == user_id
            thread = ThreadAggregation(shown[0], group.count, participated)
        elif (
            group.rel_type == REPLACE
            and not shown[0].is_erased
            and (own_relation is None or own_relation.rel_type != REPLACE)
        ):
            edit = shown[0]
    return Aggregation(edit, thread, references)
