"""A room with which a client begins, as most who begin with it see it: all of what happened in it
lately, plainly.

Laws:
- It is what `rooms.py` gives for the same room in its general way, which does this for many rooms
  at once, whatever became of them.
- All of it comes from memory, and nothing is awaited. Where the room is more to the reader than
  what they see plainly, or something of it is not in memory, there is no answer here.
"""

from collections.abc import Mapping, Sequence, Set
from itertools import repeat
from operator import attrgetter
from typing import Any, Final

import msgspec

from federation.protocol.events import StateKey
from federation.rooms.events import StoredEvent
from homeserver.services.push.unread_counts import RoomUnread
from homeserver.services.rooms.client_events import NO_REASONS, present_state
from homeserver.services.sliding_sync.connections import Connection
from homeserver.services.sliding_sync.request import MEMBER, SlidingRequest
from homeserver.services.sliding_sync.required_state import AskedState, StateOfRoom
from homeserver.services.sliding_sync.room_entry import are_too_long, complete_entry, make_inside
from homeserver.services.sliding_sync.room_work import RoomParts, RoomWork
from homeserver.services.sync.lazy_members import Member
from homeserver.services.sync.timeline_pages import Page

_pdu: Final = attrgetter("pdu")
_redacted_by: Final = attrgetter("redacted_by")
_weight: Final = attrgetter("weight")


class _ToldState(msgspec.Struct, frozen=True, gc=False):
    """State of a room as it is told."""

    shared: object
    """What was asked for (`Question.shared`)."""
    state: StateOfRoom
    nids: Sequence[int]
    events: Sequence[StoredEvent]
    by_nid: Mapping[int, StoredEvent]
    required: Sequence[msgspec.Raw]
    size: int
    """Of its events, in bytes."""

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes, with its events."""
        weight: int = 500 + self.size + sum(map(_weight, self.events))
        return weight

    def with_more(self, other: "_ToldState") -> "_ToldState":
        """With what another has beside it."""
        state = StateOfRoom({**self.state.entries, **other.state.entries}, self.state.named, True)
        required = [*self.required, *other.required]
        return _ToldState(
            None, state, self.nids, self.events, self.by_nid, required, self.size + other.size
        )


class NewRooms:
    """Tells them."""

    def __init__(self, parts: RoomParts) -> None:
        self._parts = parts

    def tell(
        self,
        request: SlidingRequest,
        connection: Connection,
        work: RoomWork,
        upto: int,
        newly_sent: set[Member],
    ) -> dict[str, Any] | None:
        """The entry of a room that is told as a whole, as it is at a position; None if it takes
        more to tell. Fills in what was found, and adds to `newly_sent` whose memberships are told
        since its events need them."""
        parts, own, nid, user_id = self._parts, work.own, work.room.room_nid, request.caller.user_id
        if own.membership != "join" or work.sent is not None or work.left_before:
            return None
        ignored = parts.ignored.known_of(user_id)
        summary = parts.summaries.find_named(nid)
        bump = parts.recency.known_bumps.get(nid)
        if ignored is None or summary is None or bump is None:
            return None
        page = parts.pages.find(nid, upto, work.config.timeline_limit)
        if page is None or not parts.visibility.shows_since(own, page.events, page.since):
            return None
        speakers = page.people
        if not ignored.isdisjoint(speakers):
            return None
        needed = speakers if work.config.required_state.lazy_members else frozenset()
        told = self._find_state(page, work, needed)
        if told is None:
            return None
        counts: RoomUnread | None = None
        if not request.stable:
            counts = parts.unread.carry_on(user_id, nid, ignored)
            if counts is None:
                return None
        presented = parts.pages.present(user_id, request.caller.device_id, page)
        if presented is None or are_too_long(page.size):
            return None
        work.limited, work.anew = page.limited, True
        work.newest, work.shown, work.speakers = page.events[-1], page.shown, speakers
        work.state, work.summary, work.is_told = told.state, summary, True
        work.size = page.size + told.size
        newly_sent.update(zip(repeat(nid), needed))
        entry = make_inside(
            work, presented, told.required, told.by_nid, request.stable, connection, upto
        )
        complete_entry(entry, work, bump, counts, request.stable)
        return entry

    def _find_state(self, page: Page, work: RoomWork, members: Set[str]) -> _ToldState | None:
        """The required state with these memberships; None where it is not in memory, or more is
        told of it than the events."""
        parts, root, own = (
            self._parts,
            page.events[-1].current_root,
            StateKey(MEMBER, work.own.user_id),
        )
        wanted = work.config.required_state
        question = parts.states.question(wanted)
        if question is None:
            return None
        others = question.members - {own.state_key}
        if question.shared is None or others:
            return self._make_state(
                parts.states.find_whole(AskedState(work.room.room_nid, root, wanted, members))
            )
        told: _ToldState | None = page.beside
        if (
            told is None
            or told.shared != question.shared
            or not parts.events.holds(told.nids, told.events)
        ):
            state = parts.states.find_whole(AskedState(work.room.room_nid, root, wanted, members))
            if state is not None and own.state_key not in members:
                state.entries.pop(own, None)
            told = self._make_state(state, question.shared)
            if told is None:
                return None
            parts.pages.keep_beside(page, told, told.weight)
        if own.state_key not in question.members or own in told.state.entries:
            return told
        nid = parts.states.find_member(work.room.room_nid, root, own.state_key)
        mine = None if nid is None else self._make_state(StateOfRoom({own: nid}))
        return None if mine is None else told.with_more(mine)

    def _make_state(self, state: StateOfRoom | None, shared: object = None) -> _ToldState | None:
        if state is None:
            return None
        nids = list(dict.fromkeys([*state.entries.values(), *filter(None, state.named.values())]))
        events = self._parts.events.find_all(nids)
        if events is None or any(map(_redacted_by, events)):
            return None
        by_nid = dict(zip(nids, events, strict=True))
        entries = list(map(by_nid.__getitem__, state.entries.values()))
        return _ToldState(
            shared,
            state,
            nids,
            events,
            by_nid,
            present_state(entries, NO_REASONS, with_room_id=False),
            sum(map(len, map(_pdu, entries))),
        )
