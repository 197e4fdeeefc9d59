"""The rooms that the user is in: timeline, state, summary, counts, receipts, typing, account data;
and those that they left.

All rooms of an answer are worked on together, so that the number of queries does not grow with
theirs; what a room needs besides is in memory for a client that is up to date.

Who has left a room is told of it as it was then. Of what came later, and may be why it is in an
answer (a ban, a knock that was taken back), they are told their own membership and nothing else.

spec: client-server-api#get_matrixclientv3sync_response-200_joined-room
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from operator import attrgetter
from typing import Any, Final

import msgspec

from federation.protocol.events import StateKey
from federation.protocol.ids import UserID
from federation.rooms.current_states import CurrentStates
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.joins.out_of_room import is_outside
from federation.rooms.timelines import Stretch, Timelines
from federation.rooms.visibility import Seen, Visibility
from homeserver.services.account_data.ignored_users import without_ignored
from homeserver.services.filters.event_filters import RoomEventFilter, limit_of
from homeserver.services.push.unread_counts import has_hidden_redaction
from homeserver.services.rooms.aggregations import Aggregations
from homeserver.services.rooms.client_events import (
    NO_REASONS,
    ClientEvents,
    keep_fields,
    present_plainly,
)
from homeserver.services.streams.sync_tokens import SyncToken, format_before, format_gap
from homeserver.services.sync.lazy_members import LazyMembers, Member
from homeserver.services.sync.request import Range, SyncRequest
from homeserver.services.sync.room_state import (
    MEMBER,
    Entries,
    RoomStates,
    StatePoint,
    changes_of,
    undo,
    without_members,
)
from homeserver.services.sync.room_summary import RoomSummaries, Summary
from storage.events.events import EventFlag
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomRow

SUMMARIZED: Final = frozenset({MEMBER, "m.room.name", "m.room.canonical_alias"})
"""State events after which the summary of a room may be another."""
_is_after_hole: Final = EventFlag.AFTER_HOLE.__and__
_flags: Final = attrgetter("flags")
_event_nid: Final = attrgetter("event_nid")
_arrivals: Final = attrgetter("arrivals")
_leaves_state: Final = attrgetter("leaves_state")
_resolved: Final = attrgetter("resolved")
_shown: Final = attrgetter("shown")
_state: Final = attrgetter("state")
EVENTS_AT_ONCE: Final = 1000
"""So many events of timelines are read before it is asked how large they are."""
LARGEST_TIMELINES: Final = 16 << 20
"""In bytes of events that were looked at: rooms beyond it have their newest event alone, and are
`limited`."""
FETCHED_PER_SHOWN: Final = 5
"""How many events are looked at for one that is shown, where a filter leaves some out."""


class RoomWork(msgspec.Struct, gc=False):
    """A room on its way into the answer."""

    room: RoomRow
    own: MembershipRow
    since: int
    """From where on the client lacks it; 0 for all."""
    whole_state: bool
    in_part: bool = False
    """Only a part of the room's state is here: memberships become known as people act."""
    is_back: bool = False
    """Whether the user has left and come back since then."""
    arrived: Sequence[StoredEvent] = ()
    """Everything of the stretch that was looked at, oldest first."""
    resolved: bool = False
    """Whether the current state changed by more than what the events set that arrived."""
    shown: Sequence[Seen] = ()
    limited: bool = False
    prev_batch: str | None = None
    state: Sequence[StoredEvent] = ()
    summary: Summary | None = None
    typing: Sequence[UserID] | None = None
    """Who types there, where a device is to be told."""
    ephemeral: list[Any] = []
    sticky: Sequence[msgspec.Raw] = ()
    is_recounted: bool = False
    """The counts may be others, whatever arrived."""
    account_data: list[Any] = []

    @property
    def is_begun(self) -> bool:
        """Whether a device may know nothing of what is beside the timeline."""
        return self.since == 0 or self.is_back

    @property
    def stayed_until(self) -> int | None:
        """Of a room that the user is not in: the position at which they left it; None if they were
        never in it."""
        return self.own.left_position


class JoinedRooms:
    """Makes the parts of rooms: also for those that were left, up to the leaving."""

    def __init__(
        self,
        events: RoomEvents,
        timelines: Timelines,
        current_states: CurrentStates,
        visibility: Visibility,
        states: RoomStates,
        summaries: RoomSummaries,
        client_events: ClientEvents,
        lazy_members: LazyMembers,
        aggregations: Aggregations,
        *,
        most_events: int,
    ) -> None:
        """`most_events` of a room are in one answer, whatever a filter says; negative: no bound of
        the operator's."""
        self._events = events
        self._timelines = timelines
        self._current_states = current_states
        self._visibility = visibility
        self._states = states
        self._summaries = summaries
        self._client_events = client_events
        self._lazy_members = lazy_members
        self._aggregations = aggregations
        self._most_events = most_events

    def begin(self, request: SyncRequest) -> set[Member]:
        """The members that a device that loads them lazily has for sure, now that it has come with
        this token."""
        return self._lazy_members.sent(
            (request.caller.user_id, request.caller.device_id), request.token
        )

    def end(self, request: SyncRequest, members: Iterable[Member], token: str) -> None:
        """These members go out to it with the answer that has this token."""
        self._lazy_members.note(
            (request.caller.user_id, request.caller.device_id), request.token, members, token
        )

    async def fill(
        self,
        request: SyncRequest,
        works: Sequence[RoomWork],
        span: Range,
        token: SyncToken,
        ignored: Set[str],
    ) -> None:
        """Find timeline, state and summary of each room. What `ignored` users said is left out."""
        await self._fill_timelines(request, works, span, ignored)
        lazy = request.loads_lazily
        sent: set[Member] | None = None
        newly_sent: set[Member] = set()
        if lazy:
            sent = self.begin(request)
        kept = (
            set[Member]() if lazy and request.filter.room.state.include_redundant_members else sent
        )
        more_than_messages = [work for work in works if _has_more_than_messages(work, kept)]
        if more_than_messages:
            await self._fill_states(request, more_than_messages, span, sent, newly_sent)
        for work in works:
            _set_prev_batch(work, span)
        if lazy:
            self.end(request, newly_sent, str(token))

    def limit_of(self, filter: RoomEventFilter) -> int:
        """How many events of a room are in one answer."""
        limit = limit_of(filter)
        return limit if self._most_events < 0 else min(limit, self._most_events)

    async def _fill_states(
        self,
        request: SyncRequest,
        works: Sequence[RoomWork],
        span: Range,
        sent: set[Member] | None,
        newly_sent: set[Member],
    ) -> None:
        """Find state and summary of each room."""
        await self._fill_summaries(request, works)
        ends = await self._find_ends(works, span)
        if not request.state_after:
            await self._cut_what_lost(works, ends)
        former = await self._current_states.at(
            {
                work.room.room_nid: work.since
                if work.stayed_until is None
                else min(work.since, work.stayed_until)
                for work in works
                if (
                    work.is_back and sent is not None
                    if work.whole_state
                    else work.limited or work.resolved
                )
            }
        )
        found: list[tuple[RoomWork, Entries]] = []
        for work in works:
            if work.own.membership != "join" and work.stayed_until is None:
                work.limited, work.whole_state = False, False
                work.state = own_state_after(request, work)
                continue
            nid = work.room.room_nid
            entries = await self._find_state(
                request, work, former.get(nid), ends[nid], sent, newly_sent
            )
            found.append((work, entries))
        wanted = request.filter.room.state
        states = await self._states.load(
            [(entries, work.room.room_id) for work, entries in found], wanted
        )
        for (work, _), state in zip(found, states, strict=True):
            work.state = state

    async def to_json(
        self, request: SyncRequest, works: Sequence[RoomWork]
    ) -> dict[str, dict[str, Any]]:
        """The rooms in their JSON form, without counts."""
        all_shown = list(chain.from_iterable(map(_shown, works)))
        limited = {work.room.room_nid for work in works if work.limited}
        presented = await self._present(request, all_shown, limited)
        stated = list(chain.from_iterable(map(_state, works)))
        reasons = (
            await self._client_events.find_reasons(request.caller.user_id, stated)
            if stated
            else NO_REASONS
        )
        begin = 0
        rooms: dict[str, dict[str, Any]] = {}
        for work in works:
            end = begin + len(work.shown)
            timeline: dict[str, Any] = {"events": presented[begin:end], "limited": work.limited}
            begin = end
            if work.prev_batch is not None:
                timeline["prev_batch"] = work.prev_batch
            federation = request.filter.event_format == "federation"
            state: list[Any] = []
            if work.state:
                state = [
                    msgspec.Raw(event.pdu)
                    if federation
                    else present_plainly(event, with_room_id=False, reasons=reasons)
                    for event in work.state
                ]
            if request.filter.event_fields:
                state = keep_fields(state, request.filter.event_fields)
            room: dict[str, Any] = {
                "timeline": timeline,
                request.state_section: {"events": state},
                "account_data": {"events": work.account_data},
            }
            if work.own.membership == "join":
                room["ephemeral"] = {"events": work.ephemeral}
                if work.sticky:
                    room["msc4354_sticky"] = {"events": work.sticky}
                room["summary"] = work.summary.json if work.summary is not None else {}
            rooms[work.room.room_id] = room
        return rooms

    async def _present(
        self, request: SyncRequest, seen: Sequence[Seen], limited: Set[int]
    ) -> list[Any]:
        """Who gets all that happened hears of children as they come: only what is `limited` comes
        with them."""
        caller = request.caller
        if request.filter.event_format == "federation":
            presented = [msgspec.Raw(each.event.pdu) for each in seen]
        else:
            presented = await self._client_events.present(
                caller.user_id, caller.device_id, seen, with_room_id=False, bundled_in=limited
            )
        return (
            keep_fields(presented, request.filter.event_fields)
            if request.filter.event_fields
            else list(presented)
        )

    async def _fill_timelines(
        self, request: SyncRequest, works: Sequence[RoomWork], span: Range, ignored: Set[str]
    ) -> None:
        wanted = request.filter.room.timeline
        limit = self.limit_of(wanted)
        # at least one: the state goes as far as the newest event, shown or not
        fetched = max(
            limit if wanted.passes_all_events and not ignored else limit * FETCHED_PER_SHOWN, 1
        )
        stretches = await self._timelines.get_latest(
            {work.room.room_nid: (work.since, _end(work, span)) for work in works}, fetched
        )
        size = 0
        for portion in portions_of(works, stretches):
            found = {work.room.room_nid: stretches[work.room.room_nid] for work in portion}
            if size > LARGEST_TIMELINES:
                found = {nid: _newest_of(stretch) for nid, stretch in found.items()}
            await self._fill_portion(request, portion, found, wanted, limit, ignored)
            size += sum([len(event.client_prefix) for work in portion for event in work.arrived])

    async def _fill_portion(
        self,
        request: SyncRequest,
        works: Sequence[RoomWork],
        stretches: Mapping[int, Stretch],
        wanted: RoomEventFilter,
        limit: int,
        ignored: Set[str],
    ) -> None:
        """Read the events of these rooms, and find their timelines."""
        events = await self._events.get_events(
            map(_event_nid, chain.from_iterable(map(_arrivals, stretches.values())))
        )
        for work in works:
            stretch = stretches[work.room.room_nid]
            work.arrived = [events[arrival.event_nid] for arrival in stretch.arrivals]
            if work.own.membership != "join":
                work.arrived = told_after_leaving(work.arrived, work.own, work.stayed_until)
            work.resolved = not all(map(_leaves_state, work.arrived)) and any(
                map(_resolved, work.arrived)
            )
            await self._fill_timeline(request, work, stretch, wanted, limit, ignored)

    async def _fill_timeline(
        self,
        request: SyncRequest,
        work: RoomWork,
        stretch: Stretch,
        wanted: RoomEventFilter,
        limit: int,
        ignored: Set[str],
    ) -> None:
        seen = await self._visibility.filter(request.caller.user_id, work.own, work.arrived)
        if not wanted.allows_room(work.room.room_id):
            seen = []
        elif not wanted.passes_all_events:
            seen = [each for each in seen if wanted.allows_event(each.event.event)]
            seen = await self._aggregations.only_related(seen, wanted)
        if ignored:
            seen = without_ignored(seen, ignored)
        work.is_recounted = has_hidden_redaction(work.arrived, seen)
        whole, has_hole = after_holes(seen, work.arrived)
        work.limited = stretch.limited or has_hole or len(whole) > limit
        work.shown = whole[-limit:] if limit else []

    async def _fill_summaries(self, request: SyncRequest, works: Sequence[RoomWork]) -> None:
        """The summaries that may be others than the client knows."""
        changed = {
            work.room.room_nid
            for work in works
            if work.own.membership == "join"
            and (
                work.whole_state
                or work.limited
                or work.resolved
                or any(event.event.type in SUMMARIZED for event in work.arrived)
            )
        }
        summaries = await self._summaries.summarize(request.caller.user_id, changed)
        for work in works:
            work.summary = summaries.get(work.room.room_nid)

    async def _cut_what_lost(
        self, works: Sequence[RoomWork], ends: Mapping[int, bytes | None]
    ) -> None:
        """Who makes the state from the timeline would take its last word for true: where a later
        change is not shown to them, or the resolution of forks decided otherwise, the timeline
        begins after that, and the state before it is right again."""
        for work in works:
            own = _own_since_leaving(work)
            if not (work.resolved or own or len(work.shown) < len(work.arrived)):
                continue
            last = {
                seen.event.event.key: at
                for at, seen in enumerate(work.shown)
                if seen.event.event.state_key is not None
            }
            true: Mapping[StateKey, int | None]
            if work.resolved:
                true = await self._states.get_some(
                    StatePoint(work.room.room_nid, ends[work.room.room_nid], own), last
                )
            else:
                true = changes_of(work.arrived) | own
            lost = [at for key, at in last.items() if true.get(key) != work.shown[at].event.nid]
            if lost:
                work.shown = work.shown[max(lost) + 1 :]
                work.limited = True

    async def _find_ends(
        self, works: Sequence[RoomWork], span: Range
    ) -> Mapping[int, bytes | None]:
        """The current states at the ends of the stretches; of rooms that were left, as they were
        then."""
        ends = {work.room.room_nid: work.arrived[-1].current_root for work in works if work.arrived}
        others = {work.room.room_nid: _end(work, span) for work in works if not work.arrived}
        for work in works:
            if work.stayed_until is not None and work.stayed_until < work.own.position:
                others[work.room.room_nid] = min(span.upto, work.stayed_until)
        return {**ends, **await self._current_states.at(others)}

    async def _find_state(
        self,
        request: SyncRequest,
        work: RoomWork,
        former: bytes | None,
        end: bytes | None,
        sent: set[Member] | None,
        newly_sent: set[Member],
    ) -> Entries:
        undone = {} if request.state_after else undo(seen.event for seen in work.shown)
        point = StatePoint(work.room.room_nid, end, _own_since_leaving(work) | undone)
        changed: Entries = {}
        if work.whole_state:
            states = self._states
            entries = await (
                states.get_all(point) if sent is None else states.get_without_members(point)
            )
            if former is not None:
                changed = await self._states.get_changes(former, point)
        elif work.limited or work.resolved:
            entries = await self._states.get_changes(former, point)
        else:
            # a filter may keep a change of state out of the timeline: that must not keep it from
            # the client
            entries = {
                key: nid for key, nid in changes_of(work.arrived).items() if key not in undone
            }
        if sent is not None:
            entries = await self._load_lazily(
                request, work, point, entries, changed, sent, newly_sent
            )
        return entries

    async def _load_lazily(
        self,
        request: SyncRequest,
        work: RoomWork,
        point: StatePoint,
        entries: Entries,
        changed: Entries,
        sent: set[Member],
        newly_sent: set[Member],
    ) -> Entries:
        """The entries with the memberships that the shown events need, and in a whole state without
        all others but those that have `changed`: the device may have kept the room while its user
        left it and came back."""
        needed = {str(each.event.event.sender) for each in work.shown}
        if work.summary is not None:
            needed |= {hero.user_id for hero in work.summary.heroes}
        if work.whole_state:
            needed.add(str(request.caller.user_id))
            needed.update(key.state_key for key in changed if key.type == MEMBER)
            entries = without_members(entries, needed)
        room_nid = work.room.room_nid
        redundant = request.filter.room.state.include_redundant_members or work.whole_state
        missing = [
            StateKey(MEMBER, user_id)
            for user_id in needed
            if StateKey(MEMBER, user_id) not in entries
            and (redundant or (room_nid, user_id) not in sent)
        ]
        if missing:
            entries = entries | await self._states.get_some(point, missing)
            lacking = [key for key in missing if key not in entries]
            if lacking and work.in_part and work.arrived:
                known = await self._states.get_some(
                    StatePoint(room_nid, work.arrived[-1].state_root), lacking
                )
                entries = known | entries
        newly_sent.update((room_nid, key.state_key) for key in entries if key.type == MEMBER)
        if not request.state_after:  # else nobody takes state from timelines
            shown = [seen.event.event for seen in work.shown if seen.event.event.type == MEMBER]
            newly_sent.update(
                (room_nid, event.state_key) for event in shown if event.state_key is not None
            )
        return entries


def portions_of(
    works: Sequence[RoomWork], stretches: Mapping[int, Stretch]
) -> Iterator[Sequence[RoomWork]]:
    """The rooms in portions of as many events as are read at once; one as a rule."""
    begin = events = 0
    for at, work in enumerate(works):
        of_room = len(stretches[work.room.room_nid].arrivals)
        if begin < at and events + of_room > EVENTS_AT_ONCE:
            yield works[begin:at]
            begin, events = at, 0
        events += of_room
    yield works[begin:]


def _newest_of(stretch: Stretch) -> Stretch:
    """The newest event alone."""
    return Stretch(stretch.arrivals[-1:], stretch.limited or len(stretch.arrivals) > 1)


def _has_more_than_messages(work: RoomWork, kept: Set[Member] | None) -> bool:
    """Whether state or summary of the room may be others than the client has; `kept`: the members
    that it keeps, if it loads them as it needs them. Mostly a room has messages alone, in a stretch
    without a gap."""
    if work.whole_state or work.limited or not all(map(_leaves_state, work.arrived)):
        return True
    return kept is not None and any(
        (work.room.room_nid, str(seen.event.event.sender)) not in kept for seen in work.shown
    )


def _set_prev_batch(work: RoomWork, span: Range) -> None:
    if work.shown:
        first = work.shown[0].event
        work.prev_batch = format_gap(first) if work.limited else format_before(first)
    else:
        work.prev_batch = str(SyncToken(span.upto, 0))


def _own_since_leaving(work: RoomWork) -> dict[StateKey, int | None]:
    """The entry of the user's own membership, if it is another than that with which they left.

    One that is kept outside of the room, such as an invite that was declined after this server had
    left, is no part of its state.
    """
    if work.stayed_until is None or work.stayed_until == work.own.position or is_outside(work.own):
        return {}
    return {StateKey(MEMBER, work.own.user_id): work.own.event_nid}


def own_state_after(request: SyncRequest, work: RoomWork) -> list[StoredEvent]:
    """Who was never in a room is told of no state but their own membership: that where they do not
    take it from the timeline."""
    wanted, key = request.filter.room.state, StateKey(MEMBER, work.own.user_id)
    if not request.state_after or not wanted.allows_room(work.room.room_id):
        return []
    own = [
        each.event
        for each in work.shown
        if each.event.event.state_key is not None and each.event.event.key == key
    ]
    return [event for event in own[-1:] if wanted.allows_event(event.event)]


def told_after_leaving(
    arrived: Iterable[StoredEvent], own: MembershipRow, stayed_until: int | None
) -> list[StoredEvent]:
    """Of what has arrived the events that concern who is not in the room: those of their stay, and
    of their membership."""
    key = StateKey(MEMBER, own.user_id)
    until = stayed_until or 0
    return [
        event
        for event in arrived
        if (event.position or 0) <= until
        or (event.event.state_key is not None and event.event.key == key)
    ]


def after_holes(
    seen: Sequence[Seen], arrived: Sequence[StoredEvent]
) -> tuple[Sequence[Seen], bool]:
    """Of what a reader sees of these arrivals that after which nothing is missing, and whether
    something is before it: a timeline has no holes, and what they lack is found by reading back."""
    if not any(map(_is_after_hole, map(_flags, arrived))):  # each event of each answer is asked
        return seen, False
    first = max(event.position or 0 for event in arrived if event.is_after_hole)
    return [each for each in seen if (each.event.position or 0) >= first], True


def _end(work: RoomWork, span: Range) -> int:
    """Up to where the user is told of the room: who is not in it hears of nothing after the last
    change of that."""
    return span.upto if work.own.membership == "join" else min(span.upto, work.own.position)
