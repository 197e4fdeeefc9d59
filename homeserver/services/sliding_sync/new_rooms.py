"""A room with which a client begins, as most who begin with it see it: all of what happened in it lately, plainly.

Laws:
- It is what `rooms.py` gives for the same room in its general way, which does this for many rooms at once, whatever became of them.
- All of it comes from memory, and nothing is awaited. Where the room is more to the reader than what they see plainly, or something of
  it is not in memory, there is no answer here.
"""

from itertools import repeat
from operator import attrgetter
from typing import Any, Final

from homeserver.services.client_events import NO_REASONS
from homeserver.services.sliding_sync.connections import Connection
from homeserver.services.sliding_sync.request import SlidingRequest
from homeserver.services.sliding_sync.required_state import AskedState, people_in
from homeserver.services.sliding_sync.room_entry import are_too_long, complete_entry, make_inside
from homeserver.services.sliding_sync.room_work import RoomParts, RoomWork
from homeserver.services.sync.lazy_members import Member
from homeserver.services.unread import RoomUnread

_pdu: Final = attrgetter("pdu")
_redacted_by: Final = attrgetter("redacted_by")


class NewRooms:
    """Tells them."""

    def __init__(self, parts: RoomParts) -> None:
        self._parts = parts

    def tell(
        self, request: SlidingRequest, connection: Connection, work: RoomWork, upto: int, newly_sent: set[Member]
    ) -> dict[str, Any] | None:
        """The entry of a room that is told as a whole, as it is at a position; None if it takes more to tell. Fills in what was found, and
        adds to `newly_sent` whose memberships are told since its events need them."""
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
        speakers = people_in(page.shown)
        if not ignored.isdisjoint(speakers):
            return None
        wanted = work.config.required_state
        needed = speakers if wanted.lazy_members else ()
        state = parts.states.find_whole(AskedState(nid, page.events[-1].current_root, wanted, needed))
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
        presented = parts.pages.present(user_id, request.caller.device_id, page)
        if presented is None or are_too_long(page.size):
            return None
        work.limited, work.anew = page.limited, True
        work.newest, work.shown, work.speakers = page.events[-1], page.shown, speakers
        work.state, work.summary, work.is_told = state, summary, True
        work.size = page.size + sum(map(len, map(_pdu, entries)))
        newly_sent.update(zip(repeat(nid), needed))
        by_nid = {event.nid: event for event in entries}
        entry = make_inside(work, presented, by_nid, NO_REASONS, request.stable, connection, upto)
        complete_entry(entry, work, bump, counts, request.stable)
        return entry
