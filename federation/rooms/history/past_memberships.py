"""Finds a user's membership of a room at a past position.

The search starts at the user's latest membership event. Each membership event is stored with the
internal number (`nid`) of the membership event that it replaced. So the search follows these
numbers back and does not read the state tree. If the events are cached, it needs no query. The
membership of a local user is stored with the position of their last join, so finding the last join
needs no search.
"""

from typing import Final

from msgspec.structs import replace

from federation.rooms.events import RoomEvents, StoredEvent
from storage.rooms.memberships import MembershipRow

MAX_CHANGES_BACK: Final = 50
"""Changes of a membership that are followed back. For the last join of local members none need be
followed."""


class PastMemberships:
    """Follows memberships back in time. Use this class only on the reactor thread."""

    def __init__(self, events: RoomEvents) -> None:
        self._events = events

    async def at(self, row: MembershipRow, position: int) -> MembershipRow | None:
        """Return the membership at a position; None if there was none, or too many changes
        since."""
        if row.position <= position:
            return row
        nid: int | None = row.event_nid
        for _ in range(MAX_CHANGES_BACK):
            event = await self._get_event(nid)
            if event is None:
                return None
            if event.position is not None and event.position <= position:
                return replace(
                    row,
                    membership=event.event.membership or "leave",
                    event_nid=event.nid,
                    sender=event.event.sender,
                    position=event.position,
                    forgotten=False,
                    joined_position=None,
                )
            nid = event.replaces
        return None

    async def get_joined_since(self, row: MembershipRow) -> int:
        """Return the position since which a present member has been in the room.

        A change of their profile is not a new join.
        """
        if row.joined_position is not None:
            return row.joined_position
        since = row.position
        event = await self._get_event(row.event_nid)
        for _ in range(MAX_CHANGES_BACK):
            if event is None or event.event.membership != "join":
                break
            since = event.position if event.position is not None else since
            event = await self._get_event(event.replaces)
        return since

    async def has_joined_since(self, row: MembershipRow, position: int) -> bool:
        """Return whether a present member last joined after a position.

        True for a member who left and came back, and if there are too many changes to know.
        """
        if row.position <= position:
            return False
        if row.joined_position is not None:
            return row.joined_position > position
        event = await self._get_event(row.event_nid)
        for _ in range(MAX_CHANGES_BACK):
            if event is None or event.event.membership != "join":
                return True
            if event.position is not None and event.position <= position:
                return False
            event = await self._get_event(event.replaces)
        return True

    async def _get_event(self, nid: int | None) -> StoredEvent | None:
        return (await self._events.get_events([nid])).get(nid) if nid is not None else None
