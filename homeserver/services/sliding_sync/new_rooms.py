"""A room that comes into view for the first time, since somebody wrote in it: most of what moves the window of a client.

Laws:
- It is what `rooms.py` gives for the same room in its general way, which does this for many rooms at once, whatever became of them.
- All of it comes from memory, and nothing is awaited. Where the room is more to the reader than what they see plainly, or something of
  it is not in memory, there is no answer here.
"""

from itertools import repeat
from operator import attrgetter
from typing import Any, Final

import msgspec

from federation.rooms.visible import Seen
from homeserver.services.client_events import NO_REASONS
from homeserver.services.sliding_sync.connections import Connection
from homeserver.services.sliding_sync.request import RoomConfig, SlidingRequest
from homeserver.services.sliding_sync.required_state import AskedState, people_in
from homeserver.services.sliding_sync.room_work import RoomWork
from homeserver.services.sliding_sync.rooms import RoomParts, are_too_long, complete_entry, make_inside
from homeserver.services.sync.lazy_members import Member
from homeserver.services.unread import RoomUnread
from storage.memberships import MembershipRow
from storage.rooms import RoomRow

_event_nid: Final = attrgetter("event_nid")
_pdu: Final = attrgetter("pdu")
_redacted_by: Final = attrgetter("redacted_by")


class NewRoom(msgspec.Struct, frozen=True, gc=False):
    """A room as it is told for the first time."""

    work: RoomWork
    entry: dict[str, Any]
    members: set[Member]
    """Whose memberships are told since its events need them."""


class NewRooms:
    """Finds them."""

    def __init__(self, parts: RoomParts) -> None:
        self._parts = parts

    def find(
        self,
        request: SlidingRequest,
        connection: Connection,
        room: RoomRow,
        own: MembershipRow,
        config: RoomConfig,
        upto: int,
        *,
        is_direct: bool,
    ) -> NewRoom | None:
        """A room that the reader is joined to, and that the client was not sent, as it is at a position; None if it takes more to tell."""
        parts, nid, user_id = self._parts, room.room_nid, request.caller.user_id
        ignored = parts.ignored.known_of(user_id)
        summary = parts.summaries.find_named(nid)
        bump = parts.recency.known_bumps.get(nid)
        stretch = parts.timelines.find_latest(nid, 0, upto, config.timeline_limit)
        if ignored is None or summary is None or bump is None or stretch is None or not stretch.arrivals:
            return None
        events = parts.events.find_all(map(_event_nid, stretch.arrivals))
        if events is None or not parts.visibility.shows_as_they_are(own, events):
            return None
        shown = list(map(Seen, events, repeat("join")))
        speakers = people_in(shown)
        if not ignored.isdisjoint(speakers):
            return None
        needed = speakers if config.required_state.lazy_members else ()
        state = parts.states.find_whole(AskedState(nid, events[-1].current_root, config.required_state, needed))
        if state is None:
            return None
        named = [*state.entries.values(), *filter(None, state.named.values())]
        entries = parts.events.find_all(dict.fromkeys(named))
        if entries is None or any(map(_redacted_by, entries)):
            return None
        counts: RoomUnread | None = None
        if not request.stable:
            counts = parts.unread.carry_on(user_id, nid, ignored)
            if counts is None:
                return None
        presented = parts.client_events.present_childless(user_id, request.caller.device_id, events)
        if presented is None or are_too_long(sum(map(len, map(_pdu, events)))):
            return None
        work = RoomWork(
            room,
            own,
            config,
            None,
            0,
            initial=True,
            has_news=True,
            was_in=True,
            is_direct=is_direct,
            in_lists=list(request.lists) if request.stable else (),
            limited=stretch.limited,
            anew=True,
            newest=events[-1],
            shown=shown,
            speakers=speakers,
            state=state,
            summary=summary,
            is_told=True,
        )
        by_nid = {event.nid: event for event in entries}
        entry = make_inside(work, presented, by_nid, NO_REASONS, request.stable, connection, upto)
        complete_entry(entry, work, bump, counts, request.stable)
        return NewRoom(work, entry, set(zip(repeat(nid), needed)))
