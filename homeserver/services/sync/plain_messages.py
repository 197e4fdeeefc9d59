"""What was written in a room since a reader had all of it, as that reader gets it: most of what
both kinds of sync tell.

Laws:
- It is what timelines, visibility, client forms and counts give for the same stretch in their
  general ways, which do this for many rooms at once and for everything that happens in them.
- All of it comes from memory, and nothing is awaited. Where a message is more than that to the
  reader, or something of it is not in memory, there is no answer here.
"""

from collections.abc import Set

import msgspec

from federation.protocol.ids import RoomID
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.timelines import Timelines
from federation.rooms.visibility import Visibility
from homeserver.api.requester import Requester
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.push.unread_counts import RoomUnread, UnreadCounts
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.streams.sync_tokens import format_before
from homeserver.services.sync.lazy_members import Member
from storage.rooms.memberships import MembershipRow


class PlainMessages(msgspec.Struct, frozen=True, gc=False):
    """Messages of one room."""

    room_id: RoomID
    events: list[msgspec.Raw]
    """Oldest first; at least one."""
    prev_batch: str
    """From where a client asks for what came before them."""
    size: int
    """Of the events, in bytes."""
    counts: RoomUnread | None


class PlainMessageReader:
    """Finds them."""

    def __init__(
        self,
        timelines: Timelines,
        events: RoomEvents,
        visibility: Visibility,
        client_events: ClientEvents,
        unread: UnreadCounts,
        ignored: IgnoredUsers,
    ) -> None:
        self._timelines = timelines
        self._events = events
        self._visibility = visibility
        self._client_events = client_events
        self._unread = unread
        self._ignored = ignored

    def find(
        self,
        reader: Requester,
        own: MembershipRow,
        since: int,
        upto: int,
        *,
        limit: int,
        members: Set[Member] | None,
        counted: bool = True,
    ) -> PlainMessages | None:
        """The messages with since < position ≤ up to, of a room that the reader is in since before
        them; None if there are more than `limit`, none, or others.

        `members`: whom the client knows, if it is told of members as it needs them; None: it knows
        all.
        """
        user_id, room_nid = reader.user_id, own.room_nid
        arrivals = self._timelines.find_all(room_nid, since, upto)
        ignored = self._ignored.known_of(user_id)
        if not arrivals or len(arrivals) > limit or ignored is None:
            return None
        events: list[StoredEvent] = []
        size = 0
        for arrival in arrivals:  # mostly one
            stored = self._events.find(arrival.event_nid)
            if stored is None:
                return None
            sender = stored.event.sender
            if sender in ignored or (members is not None and (room_nid, sender) not in members):
                return None
            events.append(stored)
            size += len(stored.pdu)
        if not self._visibility.shows_plainly(own, events):
            return None
        counts = self._unread.carry_on(user_id, room_nid, ignored) if counted else None
        if counted and counts is None:
            return None
        presented = self._client_events.present_messages(user_id, reader.device_id, events)
        if presented is None:
            return None
        return PlainMessages(
            events[0].event.room_id, presented, format_before(events[0]), size, counts
        )
