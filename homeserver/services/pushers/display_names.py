"""Display names of the sender and the room of a pushed event.

spec: push-gateway-api#post_matrixpushv1notify
"""

import msgspec

from federation.protocol.ids import UserID
from federation.protocol.stripped_state import StrippedEvent
from federation.rooms.events import StoredEvent
from federation.rooms.joins.out_of_room import OutOfRoomMemberships
from homeserver.services.pushers.notification import NotificationNames
from storage.rooms.memberships import MembershipRow, MembershipStore
from storage.rooms.summaries import RoomSummaryStore


class EventToPush(msgspec.Struct):
    """An event to push, shared by all pushers for which it waits."""

    stored: StoredEvent
    position: int
    room_nid: int
    thread: str | None
    queued_ms: int
    out_of_room: MembershipRow | None = None
    """The invite, if this server is not in the event's room."""
    names: NotificationNames | None = msgspec.field(default=None)
    """None until they are looked up."""


class EventNames:
    """Looks up the names, once for each event."""

    def __init__(
        self,
        *,
        memberships: MembershipStore,
        summaries: RoomSummaryStore,
        out_of_room: OutOfRoomMemberships,
    ) -> None:
        self._memberships = memberships
        self._summaries = summaries
        self._out_of_room = out_of_room

    async def get(self, event: EventToPush) -> NotificationNames:
        """Return the names for an event. At most two queries for the first call."""
        if event.names is None:
            event.names = await (
                self._in_room(event)
                if event.out_of_room is None
                else self._of_invite(event, event.out_of_room)
            )
        return event.names

    async def _in_room(self, event: EventToPush) -> NotificationNames:
        sender = event.stored.event.sender
        member = (await self._memberships.get_memberships(event.room_nid, [sender])).get(sender)
        summary = (await self._summaries.get_summaries([event.room_nid])).get(event.room_nid)
        return NotificationNames(
            sender=None if member is None else member.display_name,
            room=None if summary is None else summary.name,
            alias=None if summary is None else summary.canonical_alias,
        )

    async def _of_invite(self, event: EventToPush, row: MembershipRow) -> NotificationNames:
        """Return the names that the inviting server gives in the stripped state."""
        found = await self._out_of_room.find(row.room_nid, UserID(row.user_id))
        state = {} if found is None else {(each.type, each.state_key): each for each in found.state}
        return NotificationNames(
            sender=_text(state.get(("m.room.member", row.sender)), "displayname"),
            room=_text(state.get(("m.room.name", "")), "name"),
            alias=_text(state.get(("m.room.canonical_alias", "")), "alias"),
        )


def _text(event: StrippedEvent | None, key: str) -> str | None:
    value = None if event is None else event.content.get(key)
    return value if isinstance(value, str) and value else None
