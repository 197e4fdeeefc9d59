"""A structure that collects the changes of one room while /sync builds a response."""

from collections.abc import Iterable, Sequence, Set
from operator import attrgetter
from typing import Any, Final

import msgspec

from federation.protocol.events import StateKey
from federation.rooms.events import StoredEvent
from federation.rooms.joins.out_of_room import is_out_of_room
from federation.rooms.visibility import VisibleEvent
from homeserver.services.push.unread_counts import COUNTED, RoomUnread
from homeserver.services.sync.request import SyncRange
from homeserver.services.sync.room_state import MEMBER
from homeserver.services.sync.room_summary import RoomSummary
from storage.events.events import EventFlag
from storage.rooms.memberships import MembershipRow
from storage.rooms.rooms import RoomRow

_is_after_gap: Final = EventFlag.AFTER_GAP.__and__
_flags: Final = attrgetter("flags")


class RoomUpdate(msgspec.Struct, gc=False):
    """The changes of one room, and their encoded form."""

    room: RoomRow
    own: MembershipRow
    since: int
    """The position up to which the client has the room; 0 if it has nothing."""
    full_state: bool
    """Whether the client gets the full state, not only the changes."""
    has_partial_state: bool = False
    has_rejoined: bool = False
    """The user left and joined again since then."""
    arrived: Sequence[StoredEvent] = ()
    """The events that were read, shown or not, oldest first."""
    resolved: bool = False
    """State resolution changed more of the current state than the new events set."""
    shown: Sequence[VisibleEvent] = ()
    encoded: Sequence[msgspec.Raw] | None = None
    """The shown events as the device gets them; None until `to_json` makes them."""
    limited: bool = False
    prev_batch: str | None = None
    state: Sequence[StoredEvent] = ()
    summary: RoomSummary | None = None
    ephemeral: list[Any] = []
    sticky: Sequence[msgspec.Raw] = ()
    counts: RoomUnread | None = None
    """The unread counts, if they are known already."""
    counts_changed: bool = False
    """The unread counts may have changed although no event says so."""
    account_data: list[Any] = []

    @property
    def starts_over(self) -> bool:
        """Whether the client may lack everything except the timeline, such as receipts."""
        return self.since == 0 or self.has_rejoined

    @property
    def left_at(self) -> int | None:
        """The position at which the user left; None if they were never in the room."""
        return self.own.left_position

    def has_changes(self, ignored: Set[str]) -> bool:
        """Whether the response has anything for a client that has the room up to `since`."""
        return bool(
            self.full_state
            or self.shown
            or self.limited
            or self.state
            or self.ephemeral
            or self.sticky
            or self.account_data
            or self.counts_changed
            or any(
                event.flags & COUNTED and event.event.sender not in ignored
                for event in self.arrived
            )
        )


def end_of(update: RoomUpdate, span: SyncRange) -> int:
    """The position up to which the user sees the room: for a former member, that of their
    membership."""
    return span.upto if update.own.membership == "join" else min(span.upto, update.own.position)


def own_since_leaving(update: RoomUpdate) -> dict[StateKey, int | None]:
    """The user's own membership, if it changed since they left.

    A membership outside the room, such as an invite declined after this server left, is not part of
    the room's state.
    """
    if (
        update.left_at is None
        or update.left_at == update.own.position
        or is_out_of_room(update.own)
    ):
        return {}
    return {StateKey(MEMBER, update.own.user_id): update.own.event_nid}


def visible_after_leaving(
    arrived: Iterable[StoredEvent], own: MembershipRow, left_at: int | None
) -> list[StoredEvent]:
    """The events that a former member may see: those up to their leaving, and changes of their
    membership."""
    key = StateKey(MEMBER, own.user_id)
    until = left_at or 0
    return [
        event
        for event in arrived
        if (event.position or 0) <= until
        or (event.event.state_key is not None and event.event.key == key)
    ]


def after_gaps(
    seen: Sequence[VisibleEvent], arrived: Sequence[StoredEvent]
) -> tuple[Sequence[VisibleEvent], bool]:
    """Drop the events before a gap in the history, and return whether there was one.

    A timeline has no gaps: the client fetches the missing events by going back from `prev_batch`.
    """
    if not any(map(_is_after_gap, map(_flags, arrived))):
        return seen, False
    first = max(event.position or 0 for event in arrived if event.is_after_gap)
    return [each for each in seen if (each.event.position or 0) >= first], True
