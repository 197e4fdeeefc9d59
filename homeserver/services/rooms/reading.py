"""Reading rooms: pages of the timeline, single events with their context, state, members.

Laws:
- `find_access` decides whether a user may read a room, and which state they may see. `Visibility`
  filters the events. Anyone may read world readable rooms. A former member who has not forgotten
  the room may read it as it was when they left, even if they were banned or invited later.
- Responses show `ReadAccess.state`. Only `/context` and `/members?at=…` show the state at a visible
  event, unless the user left before that event.
- A page costs a bounded number of queries, whatever the size of the room.

spec: client-server-api#getting-events-for-a-room
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec

from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.events import StateKey
from federation.protocol.ids import EventID, RoomID, UserID
from federation.protocol.visibility import HISTORY_VISIBILITY, HistoryVisibility, read_visibility
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.history.backfill import Gap
from federation.rooms.history.membership_periods import Departure, MembershipPeriods
from federation.rooms.memberships import Memberships
from federation.rooms.snapshot import RoomSnapshot
from federation.rooms.state_view import StateView
from federation.rooms.visibility import Visibility, VisibleEvent
from homeserver.api.requester import Requester
from homeserver.services.account_data.ignored_users import IgnoredUsers, without_ignored
from homeserver.services.filters.event_filters import RoomEventFilter
from homeserver.services.rooms.aggregations import Aggregations
from homeserver.services.rooms.client_events import ClientEvents, present_state, present_state_event
from homeserver.services.rooms.history import HistorySource
from homeserver.services.rooms.state_responses import StateQuestion, StateResponses
from homeserver.services.streams.sync_tokens import (
    SyncToken,
    format_room_token,
    parse_arrived_position,
    parse_room_token,
)
from storage.events.timelines import START, Direction, TimelinePlace, TimelineStore
from storage.rooms.memberships import MembershipRow, MembershipStore
from storage.rooms.out_of_room_memberships import OUT_OF_ROOM

MEMBER: Final = "m.room.member"
DEFAULT_PAGE: Final = 10
MAX_PAGE: Final = 1000
EVENTS_PER_READ: Final = 100
"""The number of events that are read before their size is checked."""
MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of events. A page ends with the events that exceed it, whatever the limit of the
request."""
MAX_PAGES_READ: Final = 5
"""The maximum number of pages that are read when the filter or the room's history visibility leaves
pages empty."""
MAX_FETCHES: Final = 3
"""The maximum number of fetches from other servers for one page."""
END: Final = TimelinePlace(2**53, 2**53)
"""The place after all events."""


class ReadAccess(msgspec.Struct, frozen=True, gc=False):
    """A user who may read a room, and how."""

    snapshot: RoomSnapshot
    membership: MembershipRow | None
    state: StateView
    """The state that they may see: the current one, or the one at which they left."""
    departure: Departure | None = None
    """The end of their membership, if they see no later state."""

    @property
    def has_left(self) -> bool:
        """Whether they left and see no later state."""
        return self.departure is not None

    def left_before(self, event: StoredEvent) -> bool:
        """Whether they left before the event, for example a later ban. They then see the state at
        which they left."""
        left = self.departure
        return left is not None and (
            event.depth > left.place.depth or (event.position or 0) > left.position
        )


class RoomReading:
    """Reads rooms for members and former members, and world readable rooms for anyone."""

    # More than ten: it applies all rules of reading, and each is a part of its own.
    def __init__(
        self,
        *,
        engine: RoomEngine,
        events: RoomEvents,
        memberships: Memberships,
        membership_store: MembershipStore,
        timelines: TimelineStore,
        visibility: Visibility,
        membership_periods: MembershipPeriods,
        client_events: ClientEvents,
        ignored_users: IgnoredUsers,
        aggregations: Aggregations,
        state_responses: StateResponses,
        history: HistorySource,
    ) -> None:
        self._engine = engine
        self._events = events
        self._memberships = memberships
        self._membership_store = membership_store
        self._timelines = timelines
        self._visibility = visibility
        self._membership_periods = membership_periods
        self._client_events = client_events
        self._ignored = ignored_users
        self._aggregations = aggregations
        self._state_responses = state_responses
        self._history = history

    async def get_messages(
        self,
        caller: Requester,
        room_id: RoomID,
        direction: Direction,
        from_: str | None,
        to: str | None,
        limit: int,
        filter_: RoomEventFilter,
    ) -> dict[str, Any]:
        """Return a page of the timeline. spec:
        client-server-api#get_matrixclientv3roomsroomidmessages"""
        reader = await self.find_access(caller.user_id, room_id)
        start = await self._find_start(reader, from_, direction)
        end = await self.find_place(reader, to) if to is not None else None
        limit = max(1, min(limit, MAX_PAGE))
        if (
            direction is Direction.BACKWARDS
            and reader.membership is not None
            and reader.departure is not None
        ):
            left = reader.departure.place
            if reader.membership.event_nid != OUT_OF_ROOM:
                nid = reader.membership.event_nid
                left = max(left, (await self._timelines.get_places([nid]))[nid])
            start = min(start, left)
        shown: list[VisibleEvent] = []
        space = MAX_PAGE_BYTES
        place, exhausted = start, False
        for _ in range(MAX_PAGES_READ):
            requested = limit - len(shown)
            page, gap = await self._get_page(reader, place, end, direction, requested)
            is_short = len(page) < requested
            seen, page, space = await self._see_page(caller, reader, page, filter_, space)
            shown += seen
            if page and start == END:
                start = page[0][0]  # the token has to precede events that are yet to come
            if page:
                last = page[-1][0]
                place = (
                    last
                    if direction is Direction.FORWARDS
                    else TimelinePlace(last.depth, last.event_nid - 1)
                )
            # if a fetch may succeed later the page still has an end, but clients are not sent in
            # circles
            exhausted = (
                is_short and space > 0 and (gap is Gap.NONE or (gap is Gap.OPEN and not shown))
            )
            if exhausted or space <= 0 or len(shown) >= limit or (shown and gap is not Gap.NONE):
                break
        chunk = await self._client_events.present(
            caller.user_id, caller.device_id, shown, with_room_id=True
        )
        response: dict[str, Any] = {
            "chunk": chunk,
            "start": from_ if from_ is not None else format_room_token(start),
        }
        # without `end` there are no more events; forwards more may always follow
        if not exhausted or (direction is Direction.FORWARDS and shown):
            response["end"] = format_room_token(place)
        if filter_.lazy_load_members and shown:
            response["state"] = await self._members_of(
                caller, reader.state, [seen.event for seen in shown]
            )
        return response

    async def get_event(self, caller: Requester, room_id: RoomID, event_id: EventID) -> msgspec.Raw:
        """Return one event. Raises NotFound, also if the caller may not see it."""
        try:
            reader = await self.find_access(caller.user_id, room_id)
        except Forbidden as error:
            raise NotFound(error.text) from None
        seen = await self.get_visible_event(caller, reader, event_id)
        presented = await self._client_events.present(
            caller.user_id, caller.device_id, [seen], with_room_id=True
        )
        return presented[0]

    async def get_context(
        self,
        caller: Requester,
        room_id: RoomID,
        event_id: EventID,
        limit: int,
        filter_: RoomEventFilter,
    ) -> dict[str, Any]:
        """Return an event with the events around it. spec:
        client-server-api#get_matrixclientv3roomsroomidcontexteventid"""
        find = self.find_access if filter_.lazy_load_members else self._find_complete
        reader = await find(caller.user_id, room_id)
        seen = await self.get_visible_event(caller, reader, event_id)
        event = seen.event
        half = max(0, min(limit, MAX_PAGE)) // 2
        room_nid = reader.snapshot.room.room_nid
        here = TimelinePlace(event.event.depth, event.nid)
        before_here = TimelinePlace(here.depth, here.event_nid - 1)
        before, _ = await self._get_page(reader, before_here, None, Direction.BACKWARDS, half)
        after, _ = await self._get_page(reader, here, None, Direction.FORWARDS, half)
        events_before, before, _ = await self._see_page(
            caller, reader, before, filter_, MAX_PAGE_BYTES // 2
        )
        events_after, after, _ = await self._see_page(
            caller, reader, after, filter_, MAX_PAGE_BYTES // 2
        )
        events_around = [*events_before, seen, *events_after]
        presented = await self._client_events.present(
            caller.user_id, caller.device_id, events_around, with_room_id=True
        )
        last = (events_after[-1] if events_after else seen).event
        state = (
            reader.state
            if reader.left_before(last)
            else self._engine.view(room_nid, last.state_root)
        )
        if filter_.lazy_load_members:
            state_events = await self._members_of(
                caller, state, [each.event for each in events_around], reader.state
            )
        else:
            full_state = (await state.load_all()).values()
            state_events = present_state(
                full_state, await self._client_events.find_redactions(caller.user_id, full_state)
            )
        first_place = before[-1][0] if before else here
        return {
            "start": format_room_token(TimelinePlace(first_place.depth, first_place.event_nid - 1)),
            "end": format_room_token(after[-1][0] if after else here),
            "events_before": presented[: len(events_before)],
            "event": presented[len(events_before)],
            "events_after": presented[len(events_before) + 1 :],
            "state": state_events,
        }

    async def get_state(self, caller: Requester, room_id: RoomID) -> msgspec.Raw:
        """Return the full state that the caller may see, as a list of events."""
        reader = await self._find_complete(caller.user_id, room_id)
        return await self._present_state(caller, reader.state, None, ("state",), list)

    async def get_state_entry(
        self, caller: Requester, room_id: RoomID, key: StateKey, *, as_event: bool
    ) -> msgspec.Raw | Mapping[str, Any]:
        """Return the content of one entry of the state that the caller may see, or with `as_event`
        the event. Raises NotFound."""
        reader = await self.find_access(caller.user_id, room_id)
        event = await reader.state.get(key)
        if event is None and key.type == MEMBER:
            event = await (await self._find_complete(caller.user_id, room_id)).state.get(key)
        if event is None:
            raise NotFound("The room has no such state")
        if not as_event:
            return event.event.content
        reasons = await self._client_events.find_redactions(caller.user_id, [event])
        return present_state_event(event, with_room_id=True, reasons=reasons)

    async def get_members(
        self,
        caller: Requester,
        room_id: RoomID,
        at: str | None,
        membership: str | None,
        not_membership: str | None,
    ) -> msgspec.Raw:
        """Return a list of membership events: those that are `membership`, or are not
        `not_membership`.

        spec: client-server-api#get_matrixclientv3roomsroomidmembers
        """
        reader = await self._find_complete(caller.user_id, room_id)
        state = reader.state if at is None else await self._state_at(caller.user_id, reader, at)

        def choose(events: Iterable[StoredEvent]) -> list[StoredEvent]:
            if membership is None and not_membership is None:
                return list(events)
            return [
                event
                for event in events
                if (membership is not None and event.event.membership == membership)
                or (not_membership is not None and event.event.membership != not_membership)
            ]

        return await self._present_state(
            caller, state, MEMBER, ("members", membership, not_membership), choose
        )

    async def get_joined_members(self, caller: Requester, room_id: RoomID) -> msgspec.Raw:
        """Return names and avatars of the joined members, by user. Only for joined members. Raises
        Forbidden."""
        reader = await self._find_complete(caller.user_id, room_id)
        if reader.membership is None or reader.membership.membership != "join":
            raise Forbidden("You are not in this room")

        async def make() -> dict[str, dict[str, str | None]]:
            profiles = await self._membership_store.get_joined_profiles(
                reader.snapshot.room.room_nid
            )
            return {
                user_id: {"display_name": name, "avatar_url": avatar}
                for user_id, name, avatar in profiles
            }

        return await self._state_responses.get(reader.state, ("joined_members",), make)

    async def find_membership(self, user_id: UserID, snapshot: RoomSnapshot) -> str | None:
        """Return the user's current membership of a room; None if they never had one."""
        own = (await self._memberships.of_user(user_id)).get(snapshot.room.room_nid)
        return None if own is None else own.membership

    async def check_may_read(self, user_id: UserID, room_id: RoomID) -> RoomSnapshot:
        """Return the room if the user is joined to it, or anyone may read it. Raises Forbidden."""
        reader = await self.find_access(user_id, room_id)
        if reader.has_left:
            raise Forbidden("You are not in this room")
        return reader.snapshot

    async def check_joined(self, user_id: UserID, room_id: RoomID) -> RoomSnapshot:
        """Return the room if the user is joined to it. Raises Forbidden."""
        return (await self._find_member(user_id, room_id))[0]

    async def get_for_member(
        self, user_id: UserID, room_id: RoomID, event_ids: Collection[EventID]
    ) -> tuple[RoomSnapshot, Mapping[EventID, StoredEvent]]:
        """Return the room and these events of it, if the user is joined and may see them all, or
        might if they had not been removed by retention or a purge.

        Raises Forbidden; NotFound if the room lacks one of the events or they may not see it.
        """
        snapshot, own = await self._find_member(user_id, room_id)
        events = await self._events.get_by_id(snapshot.room.room_nid, set(event_ids))
        if len(events) < len(set(event_ids)) or not await self._visibility.sees_all(
            user_id, own, list(events.values())
        ):
            raise NotFound("The room has no such event, or you may not see it")
        return snapshot, events

    async def _find_member(
        self, user_id: UserID, room_id: RoomID
    ) -> tuple[RoomSnapshot, MembershipRow]:
        snapshot = await self._engine.find_snapshot(room_id)
        own = None
        if snapshot is not None:
            own = (await self._memberships.of_user(user_id)).get(snapshot.room.room_nid)
        if snapshot is None or own is None or own.membership != "join":
            raise Forbidden("You are not in this room")
        return snapshot, own

    async def find_access(self, user_id: UserID, room_id: RoomID) -> ReadAccess:
        """Return how the user may read the room. Raises Forbidden, whether the room exists or
        not."""
        snapshot = await self._engine.find_snapshot(room_id)
        if snapshot is None:
            raise Forbidden("You are not in this room")
        own = (await self._memberships.of_user(user_id)).get(snapshot.room.room_nid)
        if own is not None and own.membership == "join":
            return ReadAccess(snapshot, own, snapshot.state)
        visibility = await snapshot.state.get(HISTORY_VISIBILITY)
        readable = (
            read_visibility(None if visibility is None else visibility.event)
            is HistoryVisibility.WORLD_READABLE
        )
        if readable:
            return ReadAccess(snapshot, own, snapshot.state)
        departure = (
            None
            if own is None or own.forgotten
            else await self._membership_periods.find_departure(own)
        )
        if departure is None:
            raise Forbidden("You are not in this room")
        return ReadAccess(
            snapshot,
            own,
            self._engine.view(snapshot.room.room_nid, departure.state_root),
            departure,
        )

    async def _find_complete(self, user_id: UserID, room_id: RoomID) -> ReadAccess:
        """Wait until the room's full state is here, and return what `find_access` returns then.
        Raises Forbidden, StateIncomplete."""
        reader = await self.find_access(user_id, room_id)
        if reader.snapshot.head.partial_join is None:
            return reader
        await self._engine.get_complete(room_id)
        return await self.find_access(user_id, room_id)

    async def _see_page(
        self,
        caller: Requester,
        reader: ReadAccess,
        page: list[tuple[TimelinePlace, int]],
        filter_: RoomEventFilter,
        space: int,
    ) -> tuple[list[VisibleEvent], list[tuple[TimelinePlace, int]], int]:
        """Return what `get_visible` returns for a page, up to `space` bytes of events; the
        part of the page that was read; the bytes that are left."""
        shown: list[VisibleEvent] = []
        for begin in range(0, len(page), EVENTS_PER_READ):
            batch = page[begin : begin + EVENTS_PER_READ]
            seen = await self.get_visible(caller, reader, [nid for _, nid in batch], filter_)
            shown += seen
            space -= sum([len(each.event.client_prefix) for each in seen])
            if space <= 0:
                return shown, page[: begin + EVENTS_PER_READ], space
        return shown, page, space

    async def get_visible(
        self, caller: Requester, reader: ReadAccess, nids: Sequence[int], filter_: RoomEventFilter
    ) -> list[VisibleEvent]:
        """Return those of the events that the caller may see and that pass the filter, without
        those of users whom they ignore."""
        if not filter_.allows_room(reader.snapshot.room_id):
            return []
        events = await self._events.get_events(nids)
        seen = await self._visibility.filter(
            caller.user_id, reader.membership, [events[nid] for nid in nids]
        )
        seen = without_ignored(seen, await self._ignored.of_user(caller.user_id))
        if filter_.passes_all_events:
            return seen
        seen = [each for each in seen if filter_.allows_event(each.event.event)]
        return await self._aggregations.filter_by_relations(seen, filter_)

    async def get_visible_event(
        self, caller: Requester, reader: ReadAccess, event_id: EventID
    ) -> VisibleEvent:
        """Return one event of the room, as `get_visible_roots` returns it. Raises NotFound, also if
        the caller may not see it."""
        event = await self._events.get_event(reader.snapshot.room.room_nid, event_id)
        seen = (
            await self.get_visible_roots(caller, reader, [event.nid]) if event is not None else []
        )
        if not seen:
            raise NotFound("The room has no such event, or you may not see it")
        return seen[0]

    async def get_visible_roots(
        self, caller: Requester, reader: ReadAccess, nids: Sequence[int]
    ) -> list[VisibleEvent]:
        """Return those of the events that the caller may see. A root that was removed by retention
        or a purge comes without its content, while its thread has events to show."""
        found = await self._events.get_events(nids)
        events = [found[nid] for nid in nids]
        seen = {
            each.event.nid: each
            for each in await self._visibility.filter(caller.user_id, reader.membership, events)
        }
        hidden = [event for event in events if event.nid not in seen]
        if hidden:
            stubs = await self._visibility.filter_removed(caller.user_id, reader.membership, hidden)
            aggregations = await self._aggregations.load(
                caller.user_id, [each.event for each in stubs]
            )
            seen |= {
                nid: each
                for each in stubs
                if (nid := each.event.nid) in aggregations and aggregations[nid].thread is not None
            }
        return [seen[nid] for nid in nids if nid in seen]

    async def _get_page(
        self,
        reader: ReadAccess,
        start: TimelinePlace,
        end: TimelinePlace | None,
        direction: Direction,
        limit: int,
    ) -> tuple[list[tuple[TimelinePlace, int]], Gap]:
        """Return a page of the timeline, and the result of filling gaps in it. For members, missing
        events are fetched from other servers."""
        room_nid = reader.snapshot.room.room_nid
        page = await self._timelines.get_page(room_nid, start, end, direction, limit)
        gap = Gap.NONE
        if limit == 0 or reader.membership is None or reader.membership.membership != "join":
            return page, gap
        for _ in range(MAX_FETCHES):
            reached = end or (START if direction is Direction.BACKWARDS else END)
            if len(page) >= limit:
                reached = page[-1][0]
            lowest, highest = sorted((start.depth, reached.depth))
            gap = await self._history.fill(reader.snapshot, lowest, highest)
            if gap is not Gap.FILLED:
                break
            page = await self._timelines.get_page(room_nid, start, end, direction, limit)
        return page, gap

    async def _members_of(
        self,
        caller: Requester,
        state: StateView,
        events: Sequence[StoredEvent],
        other: StateView | None = None,
    ) -> list[msgspec.Raw]:
        """Return the memberships of the events' senders. A sender who is not in `state` is taken
        from `other`, which may be the state of one side of a fork."""
        keys = {StateKey(MEMBER, event.event.sender) for event in events}
        found = await state.load(keys)
        missing = keys - found.keys()
        if missing and other is not None:
            found = {**found, **await other.load(missing)}
        members = found.values()
        return present_state(
            members, await self._client_events.find_redactions(caller.user_id, members)
        )

    async def _present_state(
        self,
        caller: Requester,
        state: StateView,
        type_: str | None,
        question: StateQuestion,
        choose: Callable[[Iterable[StoredEvent]], list[StoredEvent]],
    ) -> msgspec.Raw:
        """Return events of a state, of one type or of all. The response is cached for all readers
        who see the same redactions."""
        loaded: list[StoredEvent] = []

        async def load() -> list[StoredEvent]:
            if not loaded:
                loaded.extend(
                    (
                        await self._events.get_events((await state.load_nids(type_)).values())
                    ).values()
                )
            return loaded

        async def find_redactions() -> list[int]:
            return sorted(
                {event.redacted_by for event in await load() if event.redacted_by is not None}
            )

        redactions = await self._state_responses.get(state, ("redactions", type_), find_redactions)
        reasons = await self._client_events.get_visible_redactions(
            caller.user_id, msgspec.json.decode(redactions, type=list[int])
        )

        async def make() -> list[msgspec.Raw]:
            return present_state(choose(await load()), reasons)

        seen = sha256(b"%r" % sorted(reasons)).hexdigest() if reasons else None
        return await self._state_responses.get(state, (*question, seen), make)

    async def _state_at(self, user_id: UserID, reader: ReadAccess, at: str) -> StateView:
        """Return the state at a token: after the event before it, or for a token of /sync the
        current state of that time, which differs while the history is forked."""
        room_nid, token = reader.snapshot.room.room_nid, parse_room_token(at)
        place = await self.find_place(reader, at)
        page = await self._timelines.get_page(room_nid, place, None, Direction.BACKWARDS, 1)
        if not page:
            return self._engine.view(room_nid, None)
        nid = page[0][1]
        event = (await self._events.get_events([nid]))[nid]
        if reader.left_before(event):
            return reader.state
        if not await self._visibility.filter_of_any_age(user_id, reader.membership, [event]):
            raise Forbidden("You may not see the room as it was then")
        return self._engine.view(
            room_nid, event.current_root if isinstance(token, SyncToken) else event.state_root
        )

    async def _find_start(
        self, reader: ReadAccess, token: str | None, direction: Direction
    ) -> TimelinePlace:
        """Return the place from which a page continues. Raises InvalidParam."""
        if token is None:
            return END if direction is Direction.BACKWARDS else START
        place, arrived = await self.find_place(reader, token), parse_arrived_position(token)
        if direction is Direction.FORWARDS or arrived is None:
            return place
        room_nid = reader.snapshot.room.room_nid
        return max(place, await self._timelines.get_deepest_at(room_nid, arrived))

    async def find_place(self, reader: ReadAccess, token: str) -> TimelinePlace:
        """Return the place of a token in the room. Raises InvalidParam."""
        parsed = parse_room_token(token)
        if isinstance(parsed, SyncToken):
            room_nid = reader.snapshot.room.room_nid
            return await self._timelines.get_place_at(room_nid, parsed.position)
        return parsed
