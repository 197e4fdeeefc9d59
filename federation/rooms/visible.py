"""Which of a room's events one of our users may see, and what they were to the room at each.

Every path that shows events to a user passes here. The state before an event is the state after it, but for the entry
that it set itself, whose former event is stored with it: so one batch of look-ups answers for a whole page.

spec: client-server-api#room-history-visibility
"""

from collections.abc import Sequence
from itertools import repeat
from operator import attrgetter
from typing import Final

import msgspec

from federation.protocol.events import StateKey
from federation.protocol.ids import UserID
from federation.protocol.visibility import (
    HISTORY_VISIBILITY,
    HistoryVisibility,
    is_visible,
    membership_after,
    read_visibility,
)
from federation.rooms.erased_senders import ErasedSenders
from federation.rooms.lifetimes import Lifetimes
from federation.rooms.room_events import RoomEvents, StoredEvent
from storage.events import EventFlag
from storage.memberships import MembershipRow
from storage.state_tree import StateTreeStore

_STANDING: Final = (EventFlag.TIMELINE | EventFlag.PURGED).__and__
_SHOWN: Final = frozenset({EventFlag.TIMELINE})
"""What `_STANDING` says of events that stand in the timeline and were not purged."""
_flags: Final = attrgetter("flags")
_position: Final = attrgetter("position")
MAX_DEPTH: Final = 2**53 - 1
MAX_CHANGES_BACK: Final = 20
"""How many changes of a former member's membership are followed back to the last time they were in the room."""


class Seen(msgspec.Struct, frozen=True, gc=False):
    """An event that the user may see."""

    event: StoredEvent
    membership: str
    """The user's own, once the event had happened."""
    is_erased: bool = False
    """Whether it is without its content, since its sender's account was erased before the user came."""


class Visibility:
    """Filters pages of events for a user."""

    def __init__(
        self,
        trees: StateTreeStore,
        events: RoomEvents,
        lifetimes: Lifetimes | None = None,
        erased: ErasedSenders | None = None,
    ) -> None:
        """Without `lifetimes` messages are shown for ever."""
        self._erased = erased
        self._trees = trees
        self._events = events
        self._lifetimes = lifetimes

    async def filter(self, user_id: UserID, own: MembershipRow | None, events: Sequence[StoredEvent]) -> list[Seen]:
        """Those of the events (of one room) that the user may see, in the given order.

        `own` is the user's present membership of the room. Events that do not stand in the timeline are left out, and
        messages that are kept no longer.
        """
        return await self.filter_of_any_age(user_id, own, await self.without_expired(events))

    async def without_expired(self, events: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
        """Those of the events (of one room) that are kept still, whoever may see them."""
        if self._lifetimes is None or not events:
            return events
        oldest = await self._lifetimes.oldest_shown(events[0].room_nid)
        return [event for event in events if not event.is_expired(oldest)]

    async def filter_of_any_age(
        self, user_id: UserID, own: MembershipRow | None, events: Sequence[StoredEvent]
    ) -> list[Seen]:
        """As `filter`, with messages that are kept no longer: for who asks for the state at an event, not for the event."""
        if not _SHOWN.issuperset(map(_STANDING, map(_flags, events))):
            events = [event for event in events if event.is_shown]
        if own is None or own.membership != "join":
            return await self._filter_by_state(user_id, own, events)
        # since the latest change of their membership they have been in the room: they see all, whatever its settings
        since = own.position
        positions = list(map(_position, events))
        if None not in positions and min(positions, default=0) > since:
            return list(map(Seen, events, repeat("join")))
        page = [Seen(event, "join") for event in events if (event.position or 0) > since]
        later = {each.event.nid: each for each in page}
        before = [event for event in events if event.nid not in later]
        seen = later | {each.event.nid: each for each in await self._filter_by_state(user_id, own, before)}
        return [seen[event.nid] for event in events if event.nid in seen]

    async def _filter_by_state(
        self, user_id: UserID, own: MembershipRow | None, events: Sequence[StoredEvent]
    ) -> list[Seen]:
        if not events:
            return []
        member = StateKey("m.room.member", user_id)
        keys = (HISTORY_VISIBILITY, member)
        after = await self._trees.get_entries_of(events[0].room_nid, (event.state_root for event in events), keys)
        entries: list[tuple[StoredEvent, int | None, int | None]] = []
        for event in events:
            found = after[event.state_root]
            visibility_nid, member_nid = found.get(HISTORY_VISIBILITY), found.get(member)
            if event.event.state_key is not None:
                if event.event.key == HISTORY_VISIBILITY:
                    visibility_nid = event.replaces
                elif event.event.key == member:
                    member_nid = event.replaces
            entries.append((event, visibility_nid, member_nid))
        wanted = {nid for _, visibility_nid, member_nid in entries for nid in (visibility_nid, member_nid)}
        loaded = await self._events.get_events(nid for nid in wanted if nid is not None)
        last_join = await self._last_join(own)
        seen: list[Seen] = []
        decided: dict[tuple[int | None, int | None, bool], str | None] = {}
        for event, visibility_nid, member_nid in entries:
            joined_later = last_join is not None and event.event.depth <= last_join
            # for events that are no state, it is the same for long runs of them
            case = (visibility_nid, member_nid, joined_later)
            is_state = event.event.state_key is not None
            if not is_state and case in decided:
                if (known := decided[case]) is not None:
                    seen.append(Seen(event, known))
                continue
            visibility = loaded.get(visibility_nid) if visibility_nid is not None else None
            membership_event = loaded.get(member_nid) if member_nid is not None else None
            membership = membership_event.event.membership if membership_event is not None else None
            # one's own leaving is shown even to who was only invited: else the room would not go from their list
            shows = _is_own_membership(event, user_id) or is_visible(
                event.event,
                user_id,
                visibility=read_visibility(visibility.event if visibility is not None else None),
                membership=membership,
                joined_later=joined_later,
            )
            afterwards = membership_after(event.event, user_id, membership)
            if shows:
                seen.append(Seen(event, afterwards))
            if not is_state:
                decided[case] = afterwards if shows else None
        return await self.without_erased(own, seen)

    async def without_erased(self, own: MembershipRow | None, seen: list[Seen]) -> list[Seen]:
        """The events (of one room), those without their content that were sent by somebody whose account was erased before the user
        came into the room. `own`: the user's present membership."""
        if self._erased is None or not seen:
            return seen
        hidden = await self._erased.find_hidden(own, [(each.event, each.membership) for each in seen])
        return [self._without_content(each) if each.event.nid in hidden else each for each in seen] if hidden else seen

    def _without_content(self, seen: Seen) -> Seen:
        assert self._erased is not None
        return Seen(self._erased.without_content(seen.event), seen.membership, is_erased=True)

    async def filter_for_members(self, events: Sequence[StoredEvent]) -> list[Seen]:
        """Those of the events (of one room, that are no state) that all may see who are in it, whenever they joined; as who joined last
        sees them."""
        events = await self.without_expired(events)
        if not events:
            return []
        room_nid = events[0].room_nid
        roots = {event.state_root for event in events}
        found = await self._trees.get_entries_of(room_nid, roots, (HISTORY_VISIBILITY,))
        nids = {root: entries.get(HISTORY_VISIBILITY) for root, entries in found.items()}
        loaded = await self._events.get_events(nid for nid in nids.values() if nid is not None)
        seen: list[Seen] = []
        for event in events:
            nid = nids[event.state_root]
            visibility = loaded.get(nid) if nid is not None else None
            value = read_visibility(visibility.event if visibility is not None else None)
            if event.is_shown and value in (HistoryVisibility.SHARED, HistoryVisibility.WORLD_READABLE):
                seen.append(Seen(event, "join"))
        erased = {} if self._erased is None else await self._erased.get()
        return [self._without_content(each) if each.event.event.sender in erased else each for each in seen]

    async def was_joined(self, own: MembershipRow | None) -> bool:
        """Whether the user is, or ever was, in the room."""
        return await self._last_join(own) is not None

    async def find_departure(self, own: MembershipRow | None) -> StoredEvent | None:
        """The event that ended the user's last stay in the room; None for who was never in it, or is in it now."""
        departure, _ = await self.find_last_stay(own)
        return departure

    async def find_last_stay(self, own: MembershipRow | None) -> tuple[StoredEvent | None, StoredEvent | None]:
        """The event that ended the user's last stay in the room, and the one that it ended."""
        after: StoredEvent | None = None
        nid = None if own is None else own.event_nid
        for _ in range(MAX_CHANGES_BACK):
            event = (await self._events.get_events([nid])).get(nid) if nid is not None else None
            if event is None:
                break
            if event.event.membership == "join":
                return after, event
            after, nid = event, event.replaces
        return None, None

    async def _last_join(self, own: MembershipRow | None) -> int | None:
        """The depth up to which the user was in the room: none for who is in it now, None for who never was."""
        if own is None:
            return None
        if own.membership == "join":
            return MAX_DEPTH
        _, joined = await self.find_last_stay(own)
        return None if joined is None else joined.event.depth


def _is_own_membership(event: StoredEvent, user_id: UserID) -> bool:
    return event.event.type == "m.room.member" and event.event.state_key == user_id
