"""Receives events that retract an invite or refuse a knock of a local user.

This server is not in the room, so it cannot check the room's rules. It checks that the event is
signed by its sender's server, and that its `auth_events` contain the invite or knock. Only servers
in the room know the ID of the invite or knock, so no other server can end it.

spec: server-server-api#inviting-to-a-room, server-server-api#knocking-rooms
"""

from collections.abc import Mapping
from typing import Any, Final

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import MatrixError
from federation.protocol.events import Event
from federation.protocol.ids import ServerName, UserID, is_user_id
from federation.protocol.room_versions import RoomVersion
from federation.rooms.joins.out_of_room import (
    PENDING_MEMBERSHIPS,
    OutOfRoomMemberships,
    is_out_of_room,
)
from federation.rooms.memberships import Memberships
from federation.rooms.receipt_checks import check_signed
from federation.rooms.receive.check_sources import GetSigners
from federation.rooms.snapshot import RoomSnapshot

ENDING_MEMBERSHIPS: Final = frozenset({"leave", "ban"})


class OutOfRoomUpdates:
    """Receives events that end invites and knocks of our users. Use this class only on the reactor
    thread."""

    def __init__(
        self,
        *,
        out_of_room: OutOfRoomMemberships,
        memberships: Memberships,
        get_signers: GetSigners,
        identity: ServerIdentity,
    ) -> None:
        self._outside = out_of_room
        self._memberships = memberships
        self._get_signers = get_signers
        self._identity = identity

    async def find_version(self, snapshot: RoomSnapshot, pdu: Mapping[str, Any]) -> RoomVersion:
        """Return the room version of a PDU that may concern one of our users.

        See `OutOfRoomMemberships.find_version`.
        """
        user_id = pdu.get("state_key")
        if (
            not isinstance(user_id, str)
            or not is_user_id(user_id)
            or not self._identity.is_local(user_id)
        ):
            return snapshot.version
        auth_events = pdu.get("auth_events")
        names = (
            [each[0] if isinstance(each, list) and each else each for each in auth_events]
            if isinstance(auth_events, list)
            else []
        )
        return await self._outside.find_version(
            snapshot.room, UserID(user_id), [name for name in names if isinstance(name, str)]
        )

    async def receive(self, snapshot: RoomSnapshot, origin: ServerName, event: Event) -> bool:
        """Return whether the event ended an invite or a knock of one of our users.

        Raises Forbidden, BadEvent (signatures).
        """
        user_id = event.state_key
        if (
            event.membership not in ENDING_MEMBERSHIPS
            or user_id is None
            or not self._identity.is_local(user_id)
        ):
            return False
        own = (await self._memberships.of_user(UserID(user_id))).get(snapshot.room.room_nid)
        if own is None or own.membership not in PENDING_MEMBERSHIPS or not is_out_of_room(own):
            return False
        first = await self._outside.find_event(snapshot.room, own)
        if first is None:
            return False
        is_first = first.event.event_id in event.auth_events
        if not is_first and not await self._outside.cites_queued_invite(
            snapshot.room, UserID(user_id), event
        ):
            return False
        check_signed(event, await self._get_signers(event))
        if not is_first:
            return await self._outside.remove_queued_invite(snapshot.room, UserID(user_id), event)
        return await self._outside.store(event, origin, ())

    async def receive_or_explain(
        self, snapshot: RoomSnapshot, origin: ServerName, event: Event
    ) -> str | None:
        """Receive the event. Return why it was refused, or None."""
        try:
            if await self.receive(snapshot, origin, event):
                return None
        except MatrixError as error:
            return error.text
        return "No user of this server is in the room"
