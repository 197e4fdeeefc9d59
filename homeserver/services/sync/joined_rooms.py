"""The joined and the left rooms of a /sync response: timeline, state and summary.

The rooms of a response are read together, usually in one batch, so the number of queries does not
grow with the number of rooms. A client that is up to date usually costs no query, because what it
needs is in memory.

A room that the user has left is shown as it was when they left. If the user's membership changes
later, for example by a ban or a retracted knock, the client gets that membership, but no other
later change.

spec: client-server-api#get_matrixclientv3sync_response-200_joined-room
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from operator import attrgetter
from typing import Any, Final

import msgspec

from federation.protocol.events import StateKey
from federation.rooms.current_states import CurrentStates
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.timelines import ArrivalRange, Timelines
from federation.rooms.visibility import Visibility, VisibleEvent
from homeserver.services.account_data.ignored_users import without_ignored
from homeserver.services.filters.event_filters import RoomEventFilter, limit_of
from homeserver.services.push.unread_counts import has_hidden_redaction
from homeserver.services.rooms.aggregations import Aggregations
from homeserver.services.rooms.client_events import (
    NO_REDACTIONS,
    ClientEvents,
    Redactions,
    present_state_event,
    select_fields,
)
from homeserver.services.streams.sync_tokens import SyncToken, format_before, format_gap
from homeserver.services.sync.lazy_members import LazyMembers, RoomMember
from homeserver.services.sync.plain_messages import PlainMessages
from homeserver.services.sync.request import SyncRange, SyncRequest
from homeserver.services.sync.room_state import (
    MEMBER,
    Entries,
    RoomStates,
    StatePoint,
    changes_of,
    undo,
    without_members,
)
from homeserver.services.sync.room_summary import RoomSummaries
from homeserver.services.sync.room_update import (
    RoomUpdate,
    after_gaps,
    end_of,
    own_since_leaving,
    visible_after_leaving,
)

SUMMARIZED: Final = frozenset({MEMBER, "m.room.name", "m.room.canonical_alias"})
"""State events that may change the summary of a room."""
_event_nid: Final = attrgetter("event_nid")
_arrivals: Final = attrgetter("arrivals")
_leaves_state: Final = attrgetter("leaves_state")
_resolved: Final = attrgetter("resolved")
_shown: Final = attrgetter("shown")
_state: Final = attrgetter("state")
EVENTS_PER_READ: Final = 1000
"""Events that are read before their total size is checked."""
MAX_TIMELINES_BYTES: Final = 16 << 20
"""Bytes of events after which further rooms get their newest event only, and are `limited`."""
FETCH_FACTOR: Final = 5
"""Events that are read for each one in the timeline, if a filter leaves some out."""


class JoinedRooms:
    """Reads timeline, state and summary of rooms."""

    # More than ten: a room's section has many parts, each with its own reader.
    def __init__(
        self,
        *,
        events: RoomEvents,
        timelines: Timelines,
        current_states: CurrentStates,
        visibility: Visibility,
        states: RoomStates,
        summaries: RoomSummaries,
        client_events: ClientEvents,
        lazy_members: LazyMembers,
        aggregations: Aggregations,
        plain_messages: PlainMessages,
        max_events: int,
    ) -> None:
        """`max_events`: the operator's bound for the events of one room; negative for none."""
        self._events = events
        self._timelines = timelines
        self._current_states = current_states
        self._visibility = visibility
        self._states = states
        self._summaries = summaries
        self._client_events = client_events
        self._lazy_members = lazy_members
        self._aggregations = aggregations
        self._plain_messages = plain_messages
        self._max_events = max_events

    def begin(self, request: SyncRequest) -> set[RoomMember]:
        """Return the lazily loaded members that the device has confirmed by this token."""
        device = request.caller.user_id, request.caller.device_id
        return self._lazy_members.get_confirmed(device, request.token)

    def end(self, request: SyncRequest, members: Iterable[RoomMember], token: str) -> None:
        """Record the members that the response with this token carries."""
        device = request.caller.user_id, request.caller.device_id
        self._lazy_members.add_sent(device, request.token, members, token)

    async def fill(
        self,
        request: SyncRequest,
        updates: Sequence[RoomUpdate],
        span: SyncRange,
        token: SyncToken,
        ignored: Set[str],
    ) -> None:
        """Fill in timeline, state and summary of each room, without events of ignored users."""
        confirmed = self.begin(request) if request.loads_lazily else None
        others = [
            update for update in updates if not self._fill_plainly(request, update, span, confirmed)
        ]
        new_members: set[RoomMember] = set()
        if others:
            await self._fill_timelines(request, others, span, ignored)
            await self._fill_states(request, others, span, confirmed, new_members)
        for update in updates:
            _set_prev_batch(update, span)
        if request.loads_lazily:
            self.end(request, new_members, str(token))

    def timeline_limit(self, filter: RoomEventFilter) -> int:
        """Return the number of events that a timeline may have."""
        limit = limit_of(filter)
        return limit if self._max_events < 0 else min(limit, self._max_events)

    def _fill_plainly(
        self,
        request: SyncRequest,
        update: RoomUpdate,
        span: SyncRange,
        confirmed: set[RoomMember] | None,
    ) -> bool:
        """Fill in a room that has only plain messages, and return True; else do nothing."""
        filter = request.filter
        if update.full_state or update.starts_over:
            return False
        if not filter.passes_all_messages or filter.room.state.include_redundant_members:
            return False
        timeline = self._plain_messages.read(
            request.caller,
            update.own,
            update.since,
            span.upto,
            limit=self.timeline_limit(filter.room.timeline),
            known_members=confirmed,
        )
        if timeline is None:
            return False
        update.arrived, update.shown, update.encoded = (
            timeline.events,
            timeline.shown,
            timeline.encoded,
        )
        update.counts = timeline.counts
        return True

    async def _fill_states(
        self,
        request: SyncRequest,
        updates: Sequence[RoomUpdate],
        span: SyncRange,
        confirmed: set[RoomMember] | None,
        new_members: set[RoomMember],
    ) -> None:
        """Fill in state and summary of the rooms where either may have changed."""
        redundant = request.filter.room.state.include_redundant_members
        known = set[RoomMember]() if confirmed is not None and redundant else confirmed
        updates = [update for update in updates if _may_change_state(update, known)]
        if not updates:
            return
        await self._fill_summaries(request, updates)
        ends = await self._find_ends(updates, span)
        if not request.state_after:
            await self._cut_superseded_state(updates, ends)
        former = await self._find_former_roots(updates, confirmed)
        found: list[tuple[RoomUpdate, Entries]] = []
        for update in updates:
            if update.own.membership != "join" and update.left_at is None:
                update.limited, update.full_state = False, False
                update.state = own_state_after(request, update)
                continue
            nid = update.room.room_nid
            entries = await self._find_state(
                request, update, former.get(nid), ends[nid], confirmed, new_members
            )
            found.append((update, entries))
        filter_ = request.filter.room.state
        states = await self._states.load(
            [(entries, update.room.room_id) for update, entries in found], filter_
        )
        for (update, _), state in zip(found, states, strict=True):
            update.state = state

    async def _find_former_roots(
        self, updates: Sequence[RoomUpdate], confirmed: set[RoomMember] | None
    ) -> Mapping[int, bytes | None]:
        """Return the states that the client has, for rooms where complete states have to be
        compared."""
        positions: dict[int, int] = {}
        for update in updates:
            if update.full_state:
                is_compared = update.has_rejoined and confirmed is not None
            else:
                is_compared = update.limited or update.resolved
            if is_compared:
                end = update.since if update.left_at is None else min(update.since, update.left_at)
                positions[update.room.room_nid] = end
        return await self._current_states.at(positions)

    async def to_json(
        self, request: SyncRequest, updates: Sequence[RoomUpdate]
    ) -> dict[str, dict[str, Any]]:
        """Return the rooms in their JSON form, by ID, without unread counts."""
        await self._encode_timelines(request, updates)
        state_events = list(chain.from_iterable(map(_state, updates)))
        reasons = (
            await self._client_events.find_redactions(request.caller.user_id, state_events)
            if state_events
            else NO_REDACTIONS
        )
        rooms: dict[str, dict[str, Any]] = {}
        for update in updates:
            timeline: dict[str, Any] = {"events": update.encoded, "limited": update.limited}
            if update.prev_batch is not None:
                timeline["prev_batch"] = update.prev_batch
            room: dict[str, Any] = {
                "timeline": timeline,
                request.state_section: {"events": _encode_state(request, update, reasons)},
                "account_data": {"events": update.account_data},
            }
            if update.own.membership == "join":
                room["ephemeral"] = {"events": update.ephemeral}
                if update.sticky:
                    room["msc4354_sticky"] = {"events": update.sticky}
                room["summary"] = update.summary.json if update.summary is not None else {}
            rooms[update.room.room_id] = room
        return rooms

    async def _encode_timelines(self, request: SyncRequest, updates: Sequence[RoomUpdate]) -> None:
        """Encode the shown events, as far as that was not done already."""
        updates = [update for update in updates if update.encoded is None]
        shown = list(chain.from_iterable(map(_shown, updates)))
        limited = {update.room.room_nid for update in updates if update.limited}
        encoded = await self._encode(request, shown, limited) if shown else []
        begin = 0
        for update in updates:
            end = begin + len(update.shown)
            update.encoded = encoded[begin:end]
            begin = end

    async def _encode(
        self, request: SyncRequest, seen: Sequence[VisibleEvent], limited: Set[int]
    ) -> list[Any]:
        """Encode events. Aggregated children are bundled in `limited` rooms only.

        Elsewhere the client gets the children themselves, as they arrive.
        """
        caller = request.caller
        encoded: Sequence[Any]
        if request.filter.event_format == "federation":
            encoded = [msgspec.Raw(each.event.pdu) for each in seen]
        else:
            encoded = await self._client_events.present(
                caller.user_id, caller.device_id, seen, with_room_id=False, bundled_in=limited
            )
        return (
            select_fields(encoded, request.filter.event_fields)
            if request.filter.event_fields
            else list(encoded)
        )

    async def _fill_timelines(
        self,
        request: SyncRequest,
        updates: Sequence[RoomUpdate],
        span: SyncRange,
        ignored: Set[str],
    ) -> None:
        filter_ = request.filter.room.timeline
        limit = self.timeline_limit(filter_)
        # at least one: the state goes up to the newest event, shown or not
        fetched = max(
            limit if filter_.passes_all_events and not ignored else limit * FETCH_FACTOR, 1
        )
        ranges = await self._timelines.get_latest(
            {update.room.room_nid: (update.since, end_of(update, span)) for update in updates},
            fetched,
        )
        size = 0
        for batch in batches_of(updates, ranges):
            found = {update.room.room_nid: ranges[update.room.room_nid] for update in batch}
            if size > MAX_TIMELINES_BYTES:
                found = {nid: _newest_of(range_) for nid, range_ in found.items()}
            await self._fill_batch(request, batch, found, filter_, limit, ignored)
            size += sum([len(event.client_prefix) for update in batch for event in update.arrived])

    async def _fill_batch(
        self,
        request: SyncRequest,
        updates: Sequence[RoomUpdate],
        ranges: Mapping[int, ArrivalRange],
        filter_: RoomEventFilter,
        limit: int,
        ignored: Set[str],
    ) -> None:
        """Read the events of these rooms and make their timelines."""
        events = await self._events.get_events(
            map(_event_nid, chain.from_iterable(map(_arrivals, ranges.values())))
        )
        for update in updates:
            range_ = ranges[update.room.room_nid]
            update.arrived = [events[arrival.event_nid] for arrival in range_.arrivals]
            if update.own.membership != "join":
                update.arrived = visible_after_leaving(update.arrived, update.own, update.left_at)
            update.resolved = not all(map(_leaves_state, update.arrived)) and any(
                map(_resolved, update.arrived)
            )
            await self._fill_timeline(request, update, range_, filter_, limit, ignored)

    async def _fill_timeline(
        self,
        request: SyncRequest,
        update: RoomUpdate,
        range_: ArrivalRange,
        filter_: RoomEventFilter,
        limit: int,
        ignored: Set[str],
    ) -> None:
        seen = await self._visibility.filter(request.caller.user_id, update.own, update.arrived)
        if not filter_.allows_room(update.room.room_id):
            seen = []
        elif not filter_.passes_all_events:
            seen = [each for each in seen if filter_.allows_event(each.event.event)]
            seen = await self._aggregations.filter_by_relations(seen, filter_)
        if ignored:
            seen = without_ignored(seen, ignored)
        update.counts_changed = has_hidden_redaction(update.arrived, seen)
        visible, has_gap = after_gaps(seen, update.arrived)
        update.limited = range_.limited or has_gap or len(visible) > limit
        update.shown = visible[-limit:] if limit else []

    async def _fill_summaries(self, request: SyncRequest, updates: Sequence[RoomUpdate]) -> None:
        """Read the summaries that may have changed."""
        changed = {
            update.room.room_nid
            for update in updates
            if update.own.membership == "join"
            and (
                update.full_state
                or update.limited
                or update.resolved
                or any(event.event.type in SUMMARIZED for event in update.arrived)
            )
        }
        summaries = await self._summaries.summarize(request.caller.user_id, changed)
        for update in updates:
            update.summary = summaries.get(update.room.room_nid)

    async def _cut_superseded_state(
        self, updates: Sequence[RoomUpdate], ends: Mapping[int, bytes | None]
    ) -> None:
        """Shorten timelines that end with a state other than the current one.

        A client that builds the state from the timeline would believe a superseded state event if a
        later change is not shown, or if state resolution decided against it. So the timeline begins
        after that event, and the state before the timeline is the right one.
        """
        for update in updates:
            own = own_since_leaving(update)
            if not (update.resolved or own or len(update.shown) < len(update.arrived)):
                continue
            last = {
                seen.event.event.key: at
                for at, seen in enumerate(update.shown)
                if seen.event.event.state_key is not None
            }
            true: Mapping[StateKey, int | None]
            if update.resolved:
                true = await self._states.get_some(
                    StatePoint(update.room.room_nid, ends[update.room.room_nid], own), last
                )
            else:
                true = changes_of(update.arrived) | own
            lost = [at for key, at in last.items() if true.get(key) != update.shown[at].event.nid]
            if lost:
                update.shown = update.shown[max(lost) + 1 :]
                update.limited = True

    async def _find_ends(
        self, updates: Sequence[RoomUpdate], span: SyncRange
    ) -> Mapping[int, bytes | None]:
        """Return the current states at the end of the range; for rooms that the user left, the
        states at that time."""
        ends = {
            update.room.room_nid: update.arrived[-1].current_root
            for update in updates
            if update.arrived
        }
        others = {
            update.room.room_nid: end_of(update, span) for update in updates if not update.arrived
        }
        for update in updates:
            if update.left_at is not None and update.left_at < update.own.position:
                others[update.room.room_nid] = min(span.upto, update.left_at)
        return {**ends, **await self._current_states.at(others)}

    async def _find_state(
        self,
        request: SyncRequest,
        update: RoomUpdate,
        former: bytes | None,
        end: bytes | None,
        confirmed: set[RoomMember] | None,
        new_members: set[RoomMember],
    ) -> Entries:
        undone = {} if request.state_after else undo(seen.event for seen in update.shown)
        point = StatePoint(update.room.room_nid, end, own_since_leaving(update) | undone)
        changed: Entries = {}
        if update.full_state:
            states = self._states
            entries = await (
                states.get_all(point) if confirmed is None else states.get_without_members(point)
            )
            if former is not None:
                changed = await self._states.get_changes(former, point)
        elif update.limited or update.resolved:
            entries = await self._states.get_changes(former, point)
        else:
            # the timeline's filter must not hide a change of state
            entries = {
                key: nid for key, nid in changes_of(update.arrived).items() if key not in undone
            }
        if confirmed is not None:
            entries = await self._load_lazily(
                request, update, point, entries, changed, confirmed, new_members
            )
        return entries

    async def _load_lazily(
        self,
        request: SyncRequest,
        update: RoomUpdate,
        point: StatePoint,
        entries: Entries,
        changed: Entries,
        confirmed: set[RoomMember],
        new_members: set[RoomMember],
    ) -> Entries:
        """Add the memberships that the shown events need.

        If the full state is sent, other memberships are left out unless they `changed`: the client
        may have cached the room while its user was not in it.
        """
        room_nid = update.room.room_nid
        needed = _needed_members(request, update, changed)
        if update.full_state:
            entries = without_members(entries, needed)
        redundant = request.filter.room.state.include_redundant_members or update.full_state
        missing = [
            key
            for key in (StateKey(MEMBER, user_id) for user_id in needed)
            if key not in entries and (redundant or (room_nid, key.state_key) not in confirmed)
        ]
        if missing:
            entries = await self._add_members(update, point, entries, missing)
        new_members.update((room_nid, key.state_key) for key in entries if key.type == MEMBER)
        if not request.state_after:  # else clients take no state from timelines
            new_members.update((room_nid, user_id) for user_id in _members_in(update.shown))
        return entries

    async def _add_members(
        self, update: RoomUpdate, point: StatePoint, entries: Entries, missing: Sequence[StateKey]
    ) -> Entries:
        """Add memberships; with partial state, also those that the newest event came with."""
        entries = entries | await self._states.get_some(point, missing)
        if not update.has_partial_state or not update.arrived:
            return entries
        lacking = [key for key in missing if key not in entries]
        if not lacking:
            return entries
        newest = StatePoint(update.room.room_nid, update.arrived[-1].state_root)
        return await self._states.get_some(newest, lacking) | entries


def _needed_members(request: SyncRequest, update: RoomUpdate, changed: Entries) -> set[str]:
    """Return the users whose memberships a client with lazy loading needs."""
    needed = {str(each.event.event.sender) for each in update.shown}
    if update.summary is not None:
        needed |= {hero.user_id for hero in update.summary.heroes}
    if update.full_state:
        needed.add(str(request.caller.user_id))
        needed.update(key.state_key for key in changed if key.type == MEMBER)
    return needed


def _members_in(timeline: Sequence[VisibleEvent]) -> list[str]:
    """Return the users whose membership events a timeline has."""
    events = [seen.event.event for seen in timeline if seen.event.event.type == MEMBER]
    return [event.state_key for event in events if event.state_key is not None]


def batches_of(
    updates: Sequence[RoomUpdate], ranges: Mapping[int, ArrivalRange]
) -> Iterator[Sequence[RoomUpdate]]:
    """Split the rooms into batches of at most `EVENTS_PER_READ` events; mostly one batch."""
    begin = events = 0
    for at, update in enumerate(updates):
        of_room = len(ranges[update.room.room_nid].arrivals)
        if begin < at and events + of_room > EVENTS_PER_READ:
            yield updates[begin:at]
            begin, events = at, 0
        events += of_room
    yield updates[begin:]


def _newest_of(range_: ArrivalRange) -> ArrivalRange:
    """Drop all events except the newest."""
    return ArrivalRange(range_.arrivals[-1:], range_.limited or len(range_.arrivals) > 1)


def _may_change_state(update: RoomUpdate, known: Set[RoomMember] | None) -> bool:
    """Whether the client may need more state of the room. `known`: the lazily loaded members it
    has."""
    if update.full_state or update.limited or not all(map(_leaves_state, update.arrived)):
        return True
    return known is not None and any(
        (update.room.room_nid, str(seen.event.event.sender)) not in known for seen in update.shown
    )


def _encode_state(request: SyncRequest, update: RoomUpdate, reasons: Redactions) -> list[Any]:
    """Return the state events of a room in the form that the filter asks for."""
    state: list[Any]
    if request.filter.event_format == "federation":
        state = [msgspec.Raw(event.pdu) for event in update.state]
    else:
        state = [
            present_state_event(event, with_room_id=False, reasons=reasons)
            for event in update.state
        ]
    return (
        select_fields(state, request.filter.event_fields) if request.filter.event_fields else state
    )


def _set_prev_batch(update: RoomUpdate, span: SyncRange) -> None:
    if update.shown:
        first = update.shown[0].event
        update.prev_batch = format_gap(first) if update.limited else format_before(first)
    else:
        update.prev_batch = str(SyncToken(span.upto, 0))


def own_state_after(request: SyncRequest, update: RoomUpdate) -> list[StoredEvent]:
    """Return the state of a room that the user was never in: their own membership, if they ask for
    `state_after`."""
    filter_, key = request.filter.room.state, StateKey(MEMBER, update.own.user_id)
    if not request.state_after or not filter_.allows_room(update.room.room_id):
        return []
    own = [
        each.event
        for each in update.shown
        if each.event.event.state_key is not None and each.event.event.key == key
    ]
    return [event for event in own[-1:] if filter_.allows_event(event.event)]
