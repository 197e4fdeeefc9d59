"""Guests in rooms: they come in only where a room takes guests, and go when it no longer does.

That a room takes none any more may be said by anybody in it, on whatever server, or come of a
redaction or of forks that are resolved; and a guest may come in at that moment. So it is looked for
at intervals who is where they may not be. Where somebody here has just said so, guests go at once.

Law: a look at all guests takes a hundredth of the time at most, however many they are; and who
cannot leave keeps nobody else.

spec: client-server-api#guest-access
"""

from collections.abc import Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import GuestAccessForbidden, MatrixError, RemoteError
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID
from federation.rooms.drafts import Draft
from federation.rooms.engine import RoomEngine
from federation.rooms.snapshot import RoomSnapshot
from storage.rooms.memberships import MembershipStore

GUEST_ACCESS: Final = StateKey("m.room.guest_access", "")
AT_ONCE: Final = 100
REST: Final = 100
"""How many times as long as a look at all guests took, it is not looked again."""


class GuestAccess:
    """Holds this server's guests to what rooms say of guests."""

    _log = Logger()

    def __init__(
        self, engine: RoomEngine, memberships: MembershipStore, clock: IReactorTime
    ) -> None:
        self._engine = engine
        self._memberships = memberships
        self._clock = clock
        self._upto = ""
        """The guest up to whom it was looked, who is where they may not be."""
        self._rests_until = 0.0

    async def check_may_join(self, snapshot: RoomSnapshot) -> None:
        """Raises GuestAccessForbidden where the room does not take guests."""
        access = await snapshot.state.get(GUEST_ACCESS)
        if access is None or access.event.content.get("guest_access") != "can_join":
            raise GuestAccessForbidden("This room does not take guests")

    async def do_remove_from(self, room_nid: int) -> None:
        """Let this server's guests leave a room, unless it takes guests."""
        found = await self._memberships.get_unwelcome_guests(AT_ONCE, room_nid)
        while found:
            await self._remove(found)
            found = await self._memberships.get_unwelcome_guests(AT_ONCE, room_nid, found[-1][1])

    async def do_remove(self, limit: int) -> int:
        """Let up to so many guests leave rooms that take none; how many left, or could not."""
        began = self._clock.seconds()
        if began < self._rests_until:
            return 0
        found = await self._memberships.get_unwelcome_guests(limit, after=self._upto)
        if len(found) == limit:
            self._upto = found[-1][1]  # of further rooms of theirs, next time
        else:
            self._upto = ""
            now = self._clock.seconds()
            self._rests_until = now + REST * (now - began)
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
                    "the guest {guest} stays in {room_id}: {error}",
                    guest=guest,
                    room_id=room_id,
                    error=str(error),
                )
