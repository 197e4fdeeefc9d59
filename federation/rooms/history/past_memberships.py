"""What a user's membership of a room was at some position: followed back from the present one,
event by event.

Every membership event is stored with the number of the one that it took the place of, so this costs
no query where the events are cached, and no walk of the state. Where the present stay of our own
users began is kept with their membership.
"""

from typing import Final

from msgspec.structs import replace

from federation.rooms.events import RoomEvents, StoredEvent
from storage.rooms.memberships import MembershipRow

MAX_CHANGES_BACK: Final = 50
"""How many changes of a membership are followed back; of our users who are in the room not one, if
it is about their stay."""


class PastMemberships:
    """Follows memberships back. For the reactor thread."""

    def __init__(self, events: RoomEvents) -> None:
        self._events = events

    async def at(self, row: MembershipRow, position: int) -> MembershipRow | None:
        """The membership as it was at a position; None if there was none then, or too much has
        happened since."""
        if row.position <= position:
            return row
        nid: int | None = row.event_nid
        for _ in range(MAX_CHANGES_BACK):
            event = await self._get(nid)
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

    async def joined_since(self, row: MembershipRow) -> int:
        """Since which position a user who is in the room has been in it: changes of their name are
        no new joining."""
        if row.joined_position is not None:
            return row.joined_position
        since = row.position
        event = await self._get(row.event_nid)
        for _ in range(MAX_CHANGES_BACK):
            if event is None or event.event.membership != "join":
                break
            since = event.position if event.position is not None else since
            event = await self._get(event.replaces)
        return since

    async def has_come_since(self, row: MembershipRow, position: int) -> bool:
        """Whether the present stay of a user who is in the room began after a position, whatever
        they were then: who left and came back has. Also if too much has happened since to know."""
        if row.position <= position:
            return False
        if row.joined_position is not None:
            return row.joined_position > position
        event = await self._get(row.event_nid)
        for _ in range(MAX_CHANGES_BACK):
            if event is None or event.event.membership != "join":
                return True
            if event.position is not None and event.position <= position:
                return False
            event = await self._get(event.replaces)
        return True

    async def _get(self, nid: int | None) -> StoredEvent | None:
        return (await self._events.get_events([nid])).get(nid) if nid is not None else None
