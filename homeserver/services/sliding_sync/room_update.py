"""Two structures from which sliding sync makes the entry of a room. `SlidingRoomUpdate` collects,
step by step, what is new to the client in the room. `RoomParts` has the services that provide this
data."""

from collections.abc import Sequence, Set

import msgspec

from federation.rooms.current_states import CurrentStates
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.timelines import Timelines
from federation.rooms.visibility import Visibility, VisibleEvent
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.push.unread_counts import RoomUnread, UnreadCounts
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.rooms.invited_rooms import InvitedRooms
from homeserver.services.sliding_sync.connections import LIVE, SentRoom
from homeserver.services.sliding_sync.request import MEMBER, RoomConfig
from homeserver.services.sliding_sync.required_state import RequestedState, RequiredStates
from homeserver.services.sliding_sync.room_order import INVITED_OR_KNOCKING
from homeserver.services.sliding_sync.room_recency import RoomRecency
from homeserver.services.sync.lazy_members import LazyMembers
from homeserver.services.sync.plain_messages import PlainMessages
from homeserver.services.sync.room_summary import RoomSummaries, RoomSummary
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomRow


class SlidingRoomUpdate(msgspec.Struct, gc=False):
    """The changes of a room, and its config."""

    room: RoomRow
    own: MembershipRow
    config: RoomConfig
    sent: SentRoom | None
    """The part of the room that the client has; None if the room was never sent."""
    is_direct: bool
    since: int = 0
    """The position up to which the client has the room; 0 if it has nothing of it."""
    initial: bool = False
    """The client starts over with the room."""
    may_have_changes: bool = False
    has_new_events: bool = False
    counts_changed: bool = False
    """The unread counts may have changed although no event says so."""
    in_lists: Sequence[str] = ()
    expanded: bool = False
    """The client wants more of the past than it has."""
    limited: bool = False
    is_new_timeline: bool = False
    """The timeline does not simply continue the timeline that the client has."""
    state_unchanged: bool = False
    """None of the events that are new to the client changed the state of the room."""
    newest: StoredEvent | None = None
    """The newest event of the range, shown or not, if any arrived."""
    shown: Sequence[VisibleEvent] = ()
    timeline_members: Set[str] = frozenset()
    """Users whose memberships are needed to show these events."""
    state: RequestedState = msgspec.field(default_factory=RequestedState)
    summary: RoomSummary | None = None
    counts: RoomUnread | None = None
    """The unread counts, if the client gets them."""
    bump: int = 0
    """The position of the newest event that moves the room up the list; 0 if there is none."""
    size: int = 0
    """Bytes of its events."""
    has_changes: bool = False
    """Whether anything is new, so that the request ends its wait."""

    @property
    def may_have_new_counts(self) -> bool:
        """Whether the counts may have changed although the client gets no event."""
        return self.counts_changed or (self.has_new_events and not self.config.timeline_limit)

    @property
    def lacks_members(self) -> bool:
        """Whether the client has a timeline without its members, and wants them now."""
        return (
            not self.initial
            and self.own.membership == "join"
            and self.sent is not None
            and self.sent.required_state.lacks_members_of(self.config.required_state)
        )

    @property
    def is_bumped(self) -> bool:
        """Whether the room moves up the list."""
        return (self.bump or self.own.position) > self.since

    @property
    def is_direct_changed(self) -> bool:
        """Whether the client has the room with another `is_dm`."""
        return self.sent is not None and self.sent.is_direct != self.is_direct

    @property
    def people(self) -> set[str]:
        """Users who come into view with the entry."""
        return self.people_shown | {
            key.state_key for key in self.state.entries if key.type == MEMBER
        }

    @property
    def people_shown(self) -> set[str]:
        """Users in a new timeline, and the heroes of the room."""
        people = set(self.timeline_members) if self.is_new_timeline else set()
        if self.summary is not None:
            people.update(hero.user_id for hero in self.summary.heroes)
        return people

    @property
    def shows_room(self) -> bool:
        """Whether timeline and state are shown: not of a room that the user was never in."""
        return self.own.membership not in INVITED_OR_KNOCKING and self.own.was_joined

    @property
    def left_before(self) -> bool:
        """Whether the user's membership changed again after they left."""
        return self.own.left_position is not None and self.own.left_position < self.own.position

    def result(self) -> SentRoom:
        """Return what the client has of the room with this response."""
        limit = self.config.timeline_limit
        if self.sent is not None and not self.initial and not self.limited:
            limit = max(limit, self.sent.timeline_limit)
        return SentRoom(LIVE, limit, self.config.required_state, self.is_direct)


class RoomParts(msgspec.Struct, frozen=True, kw_only=True):
    """The services from which room entries are read."""

    events: RoomEvents
    current_states: CurrentStates
    timelines: Timelines
    visibility: Visibility
    invited: InvitedRooms
    ignored: IgnoredUsers
    states: RequiredStates
    summaries: RoomSummaries
    unread: UnreadCounts
    recency: RoomRecency
    client_events: ClientEvents
    lazy_members: LazyMembers
    plain_messages: PlainMessages
