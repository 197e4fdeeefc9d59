"""Guests in rooms: they come in only where a room takes guests, and go when it no longer does.

That a room takes none any more may be said by anybody in it, on whatever server, or come of a redaction or of forks that are resolved;
and a guest may come in at that moment. So it is looked for at intervals who is where they may not be. Where somebody here has
just said so, guests go at once.

spec: client-server-api#guest-access
"""

from typing import Final

from twisted.logger import Logger

from federation.protocol.errors import GuestAccessForbidden, MatrixError, RemoteError
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID
from federation.rooms.drafts import Draft
from federation.rooms.engine import RoomEngine
from federation.rooms.snapshots import RoomSnapshot
from storage.memberships import MembershipStore

GUEST_ACCESS: Final = StateKey("m.room.guest_access", "")
AT_ONCE: Final = 100


class GuestAccess:
    """Holds this server's guests to what rooms say of guests."""

    _log = Logger()

    def __init__(self, engine: RoomEngine, memberships: MembershipStore) -> None:
        self._engine = engine
        self._memberships = memberships

    async def check_may_join(self, snapshot: RoomSnapshot) -> None:
        """Raises GuestAccessForbidden where the room does not take guests."""
        access = await snapshot.state.get(GUEST_ACCESS)
        if access is None or access.event.content.get("guest_access") != "can_join":
            raise GuestAccessForbidden("This room does not take guests")

    async def do_remove_from(self, room_nid: int) -> None:
        """Let this server's guests leave a room, unless it takes guests."""
        while await self._remove(AT_ONCE, room_nid) == AT_ONCE:
            pass

    async def do_remove(self, limit: int) -> int:
        """Let up to so many guests leave rooms that take none; how many left."""
        return await self._remove(limit, None)

    async def _remove(self, limit: int, room_nid: int | None) -> int:
        removed = 0
        for room_id, user_id in await self._memberships.get_unwelcome_guests(limit, room_nid):
            guest = UserID(user_id)
            leaving = Draft("m.room.member", guest, {"membership": "leave"}, guest, unless_same=True)
            try:
                await self._engine.send(RoomID(room_id), [leaving])
            except (MatrixError, RemoteError) as error:
                self._log.info(
                    "the guest {guest} stays in {room_id}: {error}", guest=guest, room_id=room_id, error=str(error)
                )
            else:
                removed += 1
        return removed
