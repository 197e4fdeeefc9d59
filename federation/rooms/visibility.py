"""Decides which events of a room a local user may see, and finds the user's membership after each.

All code that shows events to a user uses this module.

The state before an event is derived from the state after it. They differ at most in the entry
that the event set, and each state event is stored with a reference to the event that it replaced in
the state. So one batch of look-ups is enough for a whole page of events.

spec: client-server-api#room-history-visibility
"""

from collections.abc import Sequence
from itertools import repeat
from operator import attrgetter
from typing import Final

import msgspec
from msgspec.structs import replace

from federation.protocol.events import StateKey
from federation.protocol.ids import UserID
from federation.protocol.visibility import (
    HISTORY_VISIBILITY,
    is_visible,
    membership_after,
    read_visibility,
)
from federation.rooms.erased_senders import ErasedSenders
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.history.membership_periods import MembershipPeriods
from federation.rooms.history.retention import RoomRetentionCache
from storage.events.events import EventFlag
from storage.rooms.memberships import MembershipRow
from storage.state.state_tree import StateTreeStore

_mask: Final = (EventFlag.TIMELINE | EventFlag.PURGED).__and__
_VISIBLE_FLAGS: Final = frozenset({EventFlag.TIMELINE})
"""The masked flags of events that are in the timeline and not purged."""
_flags: Final = attrgetter("flags")
_position: Final = attrgetter("position")
MAX_DEPTH: Final = 2**53 - 1


class VisibleEvent(msgspec.Struct, frozen=True, gc=False):
    """An event that the user may see."""

    event: StoredEvent
    membership: str
    """The user's own membership after the event."""
    is_erased: bool = False
    """Whether it lacks its content, because its sender's account was erased before the user
    joined."""


class Visibility:
    """Filters pages of events for a user."""

    def __init__(
        self,
        *,
        trees: StateTreeStore,
        events: RoomEvents,
        membership_periods: MembershipPeriods,
        retention: RoomRetentionCache | None = None,
        erased: ErasedSenders | None = None,
    ) -> None:
        """Without `retention`, messages are shown forever."""
        self._erased = erased
        self._trees = trees
        self._events = events
        self._membership_periods = membership_periods
        self._lifetimes = retention

    async def filter(
        self, user_id: UserID, own: MembershipRow | None, events: Sequence[StoredEvent]
    ) -> list[VisibleEvent]:
        """Return the events, of one room, that the user may see, in the given order.

        `own`: the user's current membership of the room. Events outside the timeline and expired
        messages are left out.
        """
        return await self.filter_of_any_age(user_id, own, await self.without_expired(events))

    def shows_plainly(self, own: MembershipRow, events: Sequence[StoredEvent]) -> bool:
        """Return whether a member sees all of these messages, of one room, unchanged.

        That is so if they arrived since `own`, the member's membership, and were not changed since.
        False also if it would take a query to know.
        """
        for event in events:  # usually one
            if (
                not event.is_plain_message
                or event.position is None
                or event.position <= own.position
            ):
                return False
        return self._lifetimes is None or self._lifetimes.shows_all(own.room_nid, events)

    async def without_expired(self, events: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
        """Return the events, of one room, that have not expired, visible or not."""
        if self._lifetimes is None or not events:
            return events
        oldest = await self._lifetimes.get_oldest_shown(events[0].room_nid)
        return [event for event in events if not event.is_expired(oldest)]

    async def filter_of_any_age(
        self, user_id: UserID, own: MembershipRow | None, events: Sequence[StoredEvent]
    ) -> list[VisibleEvent]:
        """Return the same as `filter`, with expired messages: for readers of the state at an event
        rather than the event."""
        if not _VISIBLE_FLAGS.issuperset(map(_mask, map(_flags, events))):
            events = [event for event in events if event.is_shown]
        return await self._filter_shown(user_id, own, events)

    async def sees_all(
        self, user_id: UserID, own: MembershipRow, events: Sequence[StoredEvent]
    ) -> bool:
        """Return whether a member may see all of the events, of one room, ignoring expiry and
        purges: for annotations of the member on them."""
        if not all(event.in_timeline for event in events):
            return False
        return len(await self._filter_shown(user_id, own, events)) == len(events)

    async def filter_removed(
        self, user_id: UserID, own: MembershipRow | None, events: Sequence[StoredEvent]
    ) -> list[VisibleEvent]:
        """Return the events that the user might see if they had not expired or been purged.

        They are returned without their content, for events that refer to them. All are of one room.
        """
        in_timeline = [event for event in events if event.in_timeline]
        return [
            without_content(each) for each in await self._filter_shown(user_id, own, in_timeline)
        ]

    async def _filter_shown(
        self, user_id: UserID, own: MembershipRow | None, events: Sequence[StoredEvent]
    ) -> list[VisibleEvent]:
        if own is None or own.membership != "join":
            return await self._filter_by_state(user_id, own, events)
        # they have been in the room since the last change of their membership, and see all events
        # since then, whatever the room's settings
        since = own.position
        positions = list(map(_position, events))
        if None not in positions and min(positions, default=0) > since:
            return list(map(VisibleEvent, events, repeat("join")))
        page = [VisibleEvent(event, "join") for event in events if (event.position or 0) > since]
        later = {each.event.nid: each for each in page}
        before = [event for event in events if event.nid not in later]
        seen = later | {
            each.event.nid: each for each in await self._filter_by_state(user_id, own, before)
        }
        return [seen[event.nid] for event in events if event.nid in seen]

    async def _filter_by_state(
        self, user_id: UserID, own: MembershipRow | None, events: Sequence[StoredEvent]
    ) -> list[VisibleEvent]:
        if not events:
            return []
        member = StateKey("m.room.member", user_id)
        keys = (HISTORY_VISIBILITY, member)
        after = await self._trees.get_entries_of(
            events[0].room_nid, (event.state_root for event in events), keys
        )
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
        wanted = {
            nid for _, visibility_nid, member_nid in entries for nid in (visibility_nid, member_nid)
        }
        loaded = await self._events.get_events(nid for nid in wanted if nid is not None)
        last_join = await self._get_last_joined_depth(own)
        seen: list[VisibleEvent] = []
        decided: dict[tuple[int | None, int | None, bool], str | None] = {}
        for event, visibility_nid, member_nid in entries:
            joined_later = last_join is not None and event.event.depth <= last_join
            # for message events, the decision is the same for long runs of them
            case = (visibility_nid, member_nid, joined_later)
            is_state = event.event.state_key is not None
            if not is_state and case in decided:
                if (known := decided[case]) is not None:
                    seen.append(VisibleEvent(event, known))
                continue
            visibility = loaded.get(visibility_nid) if visibility_nid is not None else None
            membership_event = loaded.get(member_nid) if member_nid is not None else None
            membership = membership_event.event.membership if membership_event is not None else None
            # even an only invited user sees their own leave: else the room would stay in their list
            shows = _is_own_membership(event, user_id) or is_visible(
                event.event,
                user_id,
                visibility=read_visibility(visibility.event if visibility is not None else None),
                membership=membership,
                joined_later=joined_later,
            )
            afterwards = membership_after(event.event, user_id, membership)
            if shows:
                seen.append(VisibleEvent(event, afterwards))
            if not is_state:
                decided[case] = afterwards if shows else None
        return await self.without_erased(own, seen)

    async def without_erased(
        self, own: MembershipRow | None, seen: list[VisibleEvent]
    ) -> list[VisibleEvent]:
        """Remove the content of events from erased senders, as far as the user came later.

        The events are of one room; `own`: the user's current membership.
        """
        if self._erased is None or not seen:
            return seen
        hidden = await self._erased.find_hidden(
            own, [(each.event, each.membership) for each in seen]
        )
        return (
            [self._without_content(each) if each.event.nid in hidden else each for each in seen]
            if hidden
            else seen
        )

    def _without_content(self, seen: VisibleEvent) -> VisibleEvent:
        assert self._erased is not None
        return VisibleEvent(
            self._erased.without_content(seen.event), seen.membership, is_erased=True
        )

    async def _get_last_joined_depth(self, own: MembershipRow | None) -> int | None:
        """Return the depth up to which the user was in the room: unlimited for a member, None for a
        user who was never in it."""
        if own is not None and own.membership == "join":
            return MAX_DEPTH
        departure = await self._membership_periods.find_departure(own)
        return None if departure is None else departure.place.depth


def without_content(seen: VisibleEvent) -> VisibleEvent:
    """Return the event in redacted form."""
    return replace(seen, event=seen.event.without_content())


def _is_own_membership(event: StoredEvent, user_id: UserID) -> bool:
    return event.event.type == "m.room.member" and event.event.state_key == user_id
