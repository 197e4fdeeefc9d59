"""What servers tell of our users in rooms that this server is not in: that an invite was taken
back, or a knock refused.

The rules of the room cannot be checked from outside. What can be: the event is signed by its
sender's server, and it rests upon the very invite or knock that it ends, whose id only servers in
the room know.

spec: server-server-api#inviting-to-a-room, server-server-api#knocking-rooms
"""

from collections.abc import Mapping
from typing import Any, Final

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import MatrixError
from federation.protocol.events import Event
from federation.protocol.ids import ServerName, UserID, is_user_id
from federation.protocol.room_versions import RoomVersion
from federation.rooms.check import check_signed
from federation.rooms.joins.out_of_room import OPEN, OutsideMemberships, is_outside
from federation.rooms.memberships import Memberships
from federation.rooms.receive.check_sources import GetSigners
from federation.rooms.snapshot import RoomSnapshot

ENDS: Final = frozenset({"leave", "ban"})


class OutsideNews:
    """Takes in such events. For the reactor thread."""

    def __init__(
        self,
        outside: OutsideMemberships,
        memberships: Memberships,
        get_signers: GetSigners,
        identity: ServerIdentity,
    ) -> None:
        self._outside = outside
        self._memberships = memberships
        self._get_signers = get_signers
        self._identity = identity

    async def find_version(self, snapshot: RoomSnapshot, pdu: Mapping[str, Any]) -> RoomVersion:
        """The version of the room for a PDU that may be about one of our users: see
        `OutsideMemberships.find_version`."""
        user_id = pdu.get("state_key")
        if (
            not isinstance(user_id, str)
            or not is_user_id(user_id)
            or not self._identity.is_local(user_id)
        ):
            return snapshot.version
        named = pdu.get("auth_events")
        names = (
            [each[0] if isinstance(each, list) and each else each for each in named]
            if isinstance(named, list)
            else []
        )
        return await self._outside.find_version(
            snapshot.room, UserID(user_id), [name for name in names if isinstance(name, str)]
        )

    async def take_in(self, snapshot: RoomSnapshot, origin: ServerName, event: Event) -> bool:
        """Whether the event ended an invite or a knock of one of our users. Raises Forbidden,
        BadEvent (signatures)."""
        user_id = event.state_key
        if event.membership not in ENDS or user_id is None or not self._identity.is_local(user_id):
            return False
        own = (await self._memberships.of_user(UserID(user_id))).get(snapshot.room.room_nid)
        if own is None or own.membership not in OPEN or not is_outside(own):
            return False
        told = await self._outside.find_event(snapshot.room, own)
        if told is None:
            return False
        is_first = told.event.event_id in event.auth_events
        if not is_first and not await self._outside.is_upon_waiting(
            snapshot.room, UserID(user_id), event
        ):
            return False
        check_signed(event, await self._get_signers(event))
        if not is_first:
            return await self._outside.take_back(snapshot.room, UserID(user_id), event)
        return await self._outside.keep(event, origin, ())

    async def refusal(self, snapshot: RoomSnapshot, origin: ServerName, event: Event) -> str | None:
        """Take the event in; why it was not, or None."""
        try:
            if await self.take_in(snapshot, origin, event):
                return None
        except MatrixError as error:
            return error.text
        return "Nobody here is in the room"
