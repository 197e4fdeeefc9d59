"""The short way of /sync and sliding sync, for rooms in which only plain messages arrived.

Plain messages are what a waiting client usually gets. `PlainMessages.read` makes a room's timeline
from memory, without a query and without an await. The full way makes everything else in a response.
So a feature that adds a section to the response needs no condition in this module. A feature that
changes how a message in a timeline looks, or who sees it, adds its condition to
`PlainMessages.read`, or to `StoredEvent.is_plain_message` if it is a property of the event, and
nowhere else. The two callers, one for each kind of sync, check only that the client already has the
room, and that the request needs nothing from the room except the new messages.

The law: for the same room, the short way gives the same result as the full way
(`tests/helpers/sync_comparison.py`).
"""

from collections.abc import Sequence, Set

import msgspec

from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.timelines import Timelines
from federation.rooms.visibility import Visibility, VisibleEvent
from homeserver.api.requester import Requester
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.push.unread_counts import RoomUnread, UnreadCounts
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.sync.lazy_members import RoomMember
from storage.rooms.memberships import MembershipRow


class PlainTimeline(msgspec.Struct, frozen=True, gc=False):
    """The new messages of a room, oldest first; at least one."""

    events: Sequence[StoredEvent]
    encoded: Sequence[msgspec.Raw]
    """The events as this device gets them."""
    counts: RoomUnread | None
    """None if they were not asked for."""

    @property
    def shown(self) -> list[VisibleEvent]:
        """The events as the full way has them."""
        return [VisibleEvent(event, "join") for event in self.events]


class PlainMessages:
    """Reads the timelines of rooms with plain messages. Use this class only on the reactor
    thread."""

    def __init__(
        self,
        *,
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

    def read(
        self,
        caller: Requester,
        own: MembershipRow,
        since: int,
        upto: int,
        *,
        limit: int,
        known_members: Set[RoomMember] | None,
        with_counts: bool = True,
    ) -> PlainTimeline | None:
        """Return what arrived in since < position ≤ upto in a room that the client already has.

        None if any of it is more than a plain message, or is not in memory. `own` is the caller's
        membership. `known_members`: the members that the client has, None if it has all.
        """
        if own.membership != "join":
            return None
        user_id, room_nid = caller.user_id, own.room_nid
        arrivals = self._timelines.find_all(room_nid, since, upto)
        if not arrivals or len(arrivals) > limit:
            return None  # nothing, not in memory, or a gap in the timeline
        events = self._events.find_all([arrival.event_nid for arrival in arrivals])
        if events is None:
            return None  # not in memory
        if not self._visibility.shows_plainly(own, events):
            return None  # state, soft-failed, redacted, purged, expired, from before the join …
        ignored = self._ignored.get_cached(user_id)
        if ignored is None:
            return None  # not in memory
        for event in events:
            sender = event.event.sender
            if sender in ignored:
                return None  # ignored users
            if known_members is not None and (room_nid, sender) not in known_members:
                return None  # lazily loaded members
        counts = self._unread.update_cached(user_id, room_nid, ignored) if with_counts else None
        if with_counts and counts is None:
            return None  # push rules that single out this user, or counts that are not in memory
        encoded = self._client_events.present_messages(user_id, caller.device_id, events)
        if encoded is None:
            return None  # a transaction ID that is not in memory
        return PlainTimeline(events, encoded, counts)
