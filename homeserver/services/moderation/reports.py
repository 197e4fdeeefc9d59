"""Reports: users point administrators to events, rooms and users.

The response does not reveal whether a room or user exists. A report about an unknown room or user
is accepted. It is stored, unless it is about a local user who does not exist.

spec: client-server-api#reporting-content
"""

from collections.abc import Callable

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import Forbidden, NotFound
from federation.protocol.ids import EventID, RoomID, UserID
from homeserver.api.requester import Requester
from homeserver.services.rooms.reading import RoomReading
from storage.accounts.accounts import AccountStore
from storage.moderation.reports import NewReport, ReportKind, ReportStore


class Reports:
    """Stores reports."""

    def __init__(
        self,
        *,
        store: ReportStore,
        reading: RoomReading,
        accounts: AccountStore,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._reading = reading
        self._accounts = accounts
        self._identity = identity
        self._now_ms = now_ms

    async def do_report_event(
        self, caller: Requester, room_id: RoomID, event_id: EventID, reason: str | None
    ) -> None:
        """Report an event of a room that the caller is in. Raises NotFound, also if the caller is
        not in the room.

        spec: client-server-api#post_matrixclientv3roomsroomidreporteventid
        """
        try:
            await self._reading.check_joined(caller.user_id, room_id)
        except Forbidden:
            raise NotFound("The event was not found, or you are not in the room") from None
        reader = await self._reading.find_access(caller.user_id, room_id)
        seen = await self._reading.get_visible_event(caller, reader, event_id)
        sender = seen.event.event.sender
        await self._store.add_report(
            NewReport(
                self._now_ms(), ReportKind.EVENT, caller.user_id, room_id, event_id, sender, reason
            )
        )

    async def do_report_room(self, caller: Requester, room_id: RoomID, reason: str) -> None:
        """Report a room; the caller does not have to be in it. spec:
        client-server-api#post_matrixclientv3roomsroomidreport"""
        await self._store.add_report(
            NewReport(
                self._now_ms(), ReportKind.ROOM, caller.user_id, room_id=room_id, reason=reason
            )
        )

    async def do_report_user(self, caller: Requester, user_id: UserID, reason: str) -> None:
        """Report a user. Reports about local users who do not exist are dropped. spec:
        client-server-api#post_matrixclientv3usersuseridreport"""
        if self._identity.is_local(user_id) and not await self._accounts.get_accounts([user_id]):
            return
        await self._store.add_report(
            NewReport(
                self._now_ms(),
                ReportKind.USER,
                caller.user_id,
                target_user_id=user_id,
                reason=reason,
            )
        )
