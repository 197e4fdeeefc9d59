"""A room of an answer while the answer is made: what is asked of it, what the client has, and what
was found; and what it is made of."""

from collections.abc import Sequence, Set

import msgspec

from federation.rooms.current_states import CurrentStates
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.timelines import Timelines
from federation.rooms.visibility import Seen, Visibility
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.push.unread_counts import UnreadCounts
from homeserver.services.rooms.client_events import ClientEvents
from homeserver.services.rooms.invited_rooms import InvitedRooms
from homeserver.services.sliding_sync.connections import LIVE, SentRoom
from homeserver.services.sliding_sync.order import OUTSIDE
from homeserver.services.sliding_sync.recency import RoomRecency
from homeserver.services.sliding_sync.request import MEMBER, RoomConfig
from homeserver.services.sliding_sync.required_state import RequiredStates, StateOfRoom
from homeserver.services.sync.lazy_members import LazyMembers
from homeserver.services.sync.room_summary import RoomSummaries, Summary
from homeserver.services.sync.timeline_pages import NewestPages
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomRow


class RoomWork(msgspec.Struct, gc=False):
    """A room on its way into the answer."""

    room: RoomRow
    own: MembershipRow
    config: RoomConfig
    sent: SentRoom | None
    since: int
    """Up to where the client has it; 0 for nothing."""
    initial: bool
    has_news: bool
    was_in: bool
    """Whether the user is, or ever was, in the room."""
    is_direct: bool
    in_lists: Sequence[str] = ()
    is_recounted: bool = False
    """Whether its counts may be others, whatever happened."""
    expanded: bool = False
    """Whether more of the past is wanted than the client has."""
    limited: bool = False
    anew: bool = False
    """Whether the timeline is not just what came since the client had the room."""
    messages_alone: bool = False
    """Whether what arrived since the client had the room is all here, and left its state alone."""
    newest: StoredEvent | None = None
    """The newest event of the stretch, shown or not, if anything has arrived in it."""
    shown: Sequence[Seen] = ()
    speakers: Set[str] = frozenset()
    """Those whose memberships are needed to show these events."""
    state: StateOfRoom = msgspec.field(default_factory=StateOfRoom)
    summary: Summary | None = None
    size: int = 0
    """Of its events, in bytes."""
    is_told: bool = False
    """Whether there is something to tell for which a client need not wait any longer."""

    @property
    def may_be_recounted(self) -> bool:
        """Whether its counts may be others though the client is told of no event: it wants none, or
        they have changed without one."""
        return self.is_recounted or (self.has_news and not self.config.timeline_limit)

    @property
    def lacks_members(self) -> bool:
        """Whether the client has a timeline without the members that it needs, and now wants
        them."""
        return (
            not self.initial
            and self.own.membership == "join"
            and self.sent is not None
            and self.sent.required_state.lacks_members_of(self.config.required_state)
        )

    @property
    def is_no_longer_direct(self) -> bool:
        """Whether the client takes it for a direct chat that it is not."""
        return (
            not self.initial
            and self.sent is not None
            and self.sent.is_direct
            and not self.is_direct
        )

    @property
    def people(self) -> set[str]:
        """Who comes into view with the entry: those whose memberships are told beside
        `people_shown`."""
        return self.people_shown | {
            key.state_key for key in self.state.entries if key.type == MEMBER
        }

    @property
    def people_shown(self) -> set[str]:
        """Those who are named in a new timeline, and those by whom the room is named."""
        people = set(self.speakers) if self.anew else set()
        if self.summary is not None:
            people.update(hero.user_id for hero in self.summary.heroes)
        return people

    @property
    def shows_room(self) -> bool:
        """Whether timeline and state are shown: not of a room that the user was never in."""
        return self.own.membership not in OUTSIDE and self.was_in

    @property
    def left_before(self) -> bool:
        """Whether something has become of the user's membership since they left."""
        return self.own.left_position is not None and self.own.left_position < self.own.position

    def result(self) -> SentRoom:
        """What the client has of the room with this answer."""
        limit = self.config.timeline_limit
        if self.sent is not None and not self.initial and not self.limited:
            limit = max(limit, self.sent.timeline_limit)
        return SentRoom(LIVE, limit, self.config.required_state, self.is_direct)


class RoomParts(msgspec.Struct, frozen=True):
    """What entries are made of."""

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
    pages: NewestPages
