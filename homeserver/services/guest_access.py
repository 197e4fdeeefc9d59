"""Guests in rooms: they come in only where a room takes guests, and go when it no longer does.

spec: client-server-api#guest-access
"""

from typing import Final

from twisted.logger import Logger

from federation.protocol.errors import GuestAccessForbidden, MatrixError, RemoteError
from federation.protocol.events import StateKey
from federation.protocol.ids import UserID
from federation.rooms.drafts import Draft
from federation.rooms.engine import RoomEngine
from federation.rooms.memberships import Memberships
from federation.rooms.snapshots import RoomSnapshot
from storage.accounts import AccountStore

GUEST_ACCESS: Final = StateKey("m.room.guest_access", "")


class GuestAccess:
    """Holds this server's guests to what rooms say of guests."""

    _log = Logger()

    def __init__(self, engine: RoomEngine, memberships: Memberships, accounts: AccountStore) -> None:
        self._engine = engine
        self._memberships = memberships
        self._accounts = accounts

    async def check_may_join(self, snapshot: RoomSnapshot) -> None:
        """Raises GuestAccessForbidden where the room does not take guests."""
        if not await _takes_guests(snapshot):
            raise GuestAccessForbidden("This room does not take guests")

    async def do_remove_guests(self, snapshot: RoomSnapshot) -> None:
        """Let this server's guests leave the room, unless it takes guests."""
        if await _takes_guests(snapshot):
            return
        members = await self._memberships.local_members(snapshot.room.room_nid)
        accounts = await self._accounts.get_accounts(UserID(member) for member in members)
        for user_id in sorted(accounts):
            if accounts[user_id].is_guest:
                leaving = Draft("m.room.member", UserID(user_id), {"membership": "leave"}, user_id, unless_same=True)
                try:
                    await self._engine.send(snapshot.room_id, [leaving])
                except (MatrixError, RemoteError) as error:
                    self._log.info(
                        "{user} stays in {room}: {error}", user=user_id, room=snapshot.room_id, error=str(error)
                    )


async def _takes_guests(snapshot: RoomSnapshot) -> bool:
    access = await snapshot.state.get(GUEST_ACCESS)
    return access is not None and access.event.content.get("guest_access") == "can_join"
