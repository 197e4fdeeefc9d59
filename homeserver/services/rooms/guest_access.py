"""Guest access: guests join only rooms that allow guests, and leave when a room no longer does.

Guest access can be withdrawn by a member on another server, by a redaction or by state resolution.
A guest may also join at the moment when it is withdrawn. So a job searches for guests in rooms that
do not allow them, at intervals. If a user of this server withdraws guest access, guests leave
immediately.

Law: the search runs for at most a hundredth of the time, however many guests there are. A guest who
cannot leave delays nobody else.

spec: client-server-api#guest-access
"""

from collections.abc import Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import GuestAccessForbidden, MatrixError, RemoteError
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Draft
from federation.rooms.snapshot import RoomSnapshot
from storage.rooms.memberships import MembershipStore

GUEST_ACCESS: Final = StateKey("m.room.guest_access", "")
BATCH: Final = 100
PAUSE_FACTOR: Final = 100
"""After a search of all guests, the next one starts after this many times its duration."""


class GuestAccess:
    """Applies the guest access of rooms to this server's guests."""

    _log = Logger()

    def __init__(
        self, *, engine: RoomEngine, memberships: MembershipStore, clock: IReactorTime
    ) -> None:
        self._engine = engine
        self._memberships = memberships
        self._clock = clock
        self._last_guest = ""
        """The last guest that the present search has reached."""
        self._pauses_until = 0.0

    async def check_may_join(self, snapshot: RoomSnapshot) -> None:
        """Raises GuestAccessForbidden if the room does not allow guests."""
        access = await snapshot.state.get(GUEST_ACCESS)
        if access is None or access.event.content.get("guest_access") != "can_join":
            raise GuestAccessForbidden("This room does not allow guests")

    async def do_remove_from_room(self, room_nid: int) -> None:
        """Make this server's guests leave a room that does not allow guests."""
        found = await self._memberships.get_disallowed_guests(BATCH, room_nid)
        while found:
            await self._remove(found)
            found = await self._memberships.get_disallowed_guests(BATCH, room_nid, found[-1][1])

    async def do_remove_guests(self, limit: int) -> int:
        """Make up to `limit` guests leave rooms that do not allow guests. Return the number of
        guests found, including those who could not leave."""
        began = self._clock.seconds()
        if began < self._pauses_until:
            return 0
        found = await self._memberships.get_disallowed_guests(limit, after=self._last_guest)
        if len(found) == limit:
            self._last_guest = found[-1][1]  # the rest of this guest's rooms come next time
        else:
            self._last_guest = ""
            now = self._clock.seconds()
            self._pauses_until = now + PAUSE_FACTOR * (now - began)
        await self._remove(found)
        return len(found)

    async def _remove(self, found: Sequence[tuple[str, str]]) -> None:
        for room_id, user_id in found:
            guest = UserID(user_id)
            leaving = Draft(
                "m.room.member", guest, {"membership": "leave"}, guest, unless_same=True
            )
            try:
                await self._engine.send(RoomID(room_id), [leaving])
            except (MatrixError, RemoteError) as error:
                self._log.info(
                    "the guest {guest} could not leave {room_id}: {error}",
                    guest=guest,
                    room_id=room_id,
                    error=str(error),
                )
