"""Out of rooms that this server is not in: invites that are declined, knocks that are taken back.

Laws:
- The user has left at once, whoever answers.
- Each server that told them of the room hears of it: which have yet to is noted in the write that
  keeps the leave, and each is tried again after pauses that grow, for a week; one that says when to
  come again (429), not before. Nothing is told that is no longer so.
- Where others of this server enter the room meanwhile, the invite that was declined stands in it
  still: then the user leaves there.

spec: server-server-api#leaving-rooms-rejecting-invites
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.identity import ServerIdentity
from federation.peers.peer_backoff import PeerBackoff
from federation.peers.requests import RefusedByRemote
from federation.protocol.errors import Forbidden, MatrixError, RemoteError
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID, RoomID, ServerName, UserID, is_server_name
from federation.remote.membership import MembershipRequests
from federation.rooms.drafts import Draft
from federation.rooms.engine import RoomEngine
from federation.rooms.joins.out_of_room import OutsideMemberships
from federation.rooms.membership_templates import Handshake, lonely_leave
from federation.rooms.server_fallback import Candidates
from federation.rooms.server_in_room import Residence
from storage.federation.pending_leaves import UntoldLeave, UntoldLeaveStore
from storage.rooms.rooms import RoomStore

MEMBER: Final = "m.room.member"
MOST_ASKED: Final = 3
"""Servers, before the user has left without them."""
TOLD_AT_ONCE: Final = 16
"""Servers."""
RETRIES: Final = BackoffSchedule(5 * 60_000, 6 * 3_600_000)
LONGEST_MS: Final = 7 * 24 * 3_600_000
"""For so long a server is told again."""
_FINAL: Final = frozenset({"M_FORBIDDEN", "M_NOT_FOUND"})


class Leaving:
    """Takes our users out of rooms elsewhere. For the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        remote: MembershipRequests,
        handshake: Handshake,
        candidates: Candidates,
        residence: Residence,
        rooms: RoomStore,
        outside: OutsideMemberships,
        store: UntoldLeaveStore,
        engine: RoomEngine,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
    ) -> None:
        self._remote = remote
        self._handshake = handshake
        self._candidates = candidates
        self._residence = residence
        self._rooms = rooms
        self._outside = outside
        self._store = store
        self._engine = engine
        self._identity = identity
        self._now_ms = now_ms
        self._backoff: PeerBackoff[ServerName] = PeerBackoff(now_ms)
        self._telling: dict[ServerName, Deferred[None]] = {}
        self._is_stopped = False

    async def leave(
        self, room_id: RoomID, user_id: UserID, content: Mapping[str, Any], servers: Iterable[str]
    ) -> None:
        """Decline an invite, or take a knock back: at least for this server, if no other can be
        told for now.

        Where several servers have invited, the others are told afterwards: the one that answers may
        be a stranger to the room.
        """
        room = await self._rooms.get_room(room_id)
        assert room is not None, "it is a room with a membership"
        named = [ServerName(name) for name in dict.fromkeys(servers) if is_server_name(name)]
        told_by = await self._outside.find_servers(room.room_nid, user_id)
        untold: dict[str, str] = (
            dict(told_by.items()) if told_by else dict.fromkeys(named[:MOST_ASKED], "")
        )
        untold.pop(self._identity.server_name, None)
        askable = [server for server in named if not self._backoff.left_ms(server)]

        async def ask(server: ServerName) -> None:
            try:
                event = await self._handshake.make(server, "leave", room_id, user_id, content)
                await self._remote.send_leave(server, event)
            except RefusedByRemote as refusal:
                if _is_final(refusal):
                    untold.pop(server, None)
                self._backoff.record_failure(server, refusal)
                raise
            untold.pop(server, None)
            await self._outside.keep(event, server, (), untold if told_by else None)

        try:
            await self._candidates.ask(askable, ask, most=MOST_ASKED)
        except MatrixError as error:
            self._log.info(
                "nobody else hears for now that {user} left {room}: {error}",
                user=user_id,
                room=room_id,
                error=error,
            )
            version = await self._outside.find_version(room, user_id)
            left = lonely_leave(version, self._identity, room_id, user_id, content, self._now_ms())
            await self._outside.keep(left, self._identity.server_name, (), untold)
        for name in untold:
            if left_ms := self._backoff.left_ms(ServerName(name)):
                await self._store.let_wait(name, self._now_ms() + left_ms)
        if untold:
            Deferred.fromCoroutine(self.do_tell(TOLD_AT_ONCE)).addErrback(self._report)

    async def do_tell(self, _limit: int) -> int:
        """Begin to tell servers what they have yet to hear; nothing is waited for."""
        for name in await self._store.get_due_servers(self._now_ms(), 2 * TOLD_AT_ONCE):
            server = ServerName(name)
            if (
                server not in self._telling
                and len(self._telling) < TOLD_AT_ONCE
                and not self._is_stopped
            ):
                task = Deferred.fromCoroutine(self._tell_server(server)).addErrback(self._report)
                if not task.called:
                    self._telling[server] = task.addBoth(self._has_told, server)
        return 0

    def stop(self) -> None:
        """Tell nothing more; what was being told is tried again after the next start."""
        self._is_stopped = True
        for task in list(self._telling.values()):
            task.cancel()

    def _has_told(self, _result: None, server: ServerName) -> None:
        self._telling.pop(server, None)

    async def _tell_server(self, server: ServerName) -> None:
        """Tell a server one thing after the other, until it cannot be had."""
        while (leave := await self._store.take_due(server, self._now_ms(), _pause_ms)) is not None:
            ends = self._now_ms() - leave.since_ts >= LONGEST_MS
            try:
                is_told = await self._tell(server, leave)
            except (RemoteError, MatrixError) as error:
                self._log.info(
                    "{server} does not hear{end} that {user} left: {error}",
                    server=server,
                    end="" if ends or _is_final(error) else " for now",
                    user=leave.user_id,
                    error=error,
                )
                self._backoff.record_failure(server, error)
                if not _is_final(error):
                    await self._store.put_off(leave, self._now_ms() + self._backoff.left_ms(server))
                    if not ends:
                        return
                is_told = True
            if is_told or ends:
                await self._store.remove(leave)

    async def _tell(self, server: ServerName, leave: UntoldLeave) -> bool:
        """Leave there too, unless the user has thought better of it before that server answers;
        False where it is to be tried again though that server could be had. Raises RemoteError,
        MatrixError."""
        (room,) = (await self._rooms.get_rooms_by_nid([leave.room_nid])).values()
        room_id, user_id = RoomID(room.room_id), UserID(leave.user_id)
        left = await self._outside.find_last(room, user_id, EventID(leave.event_id))
        if left is None:
            return True
        if await self._residence.find(room_id) is None:
            event = await self._handshake.make(server, "leave", room_id, user_id, left.content)
            if not await self._store.is_unchanged(leave):
                return False
            if await self._residence.find(room_id) is None:
                await self._remote.send_leave(server, event)
                return True
        return await self._leave_inside(room_id, user_id, left.content, leave.ended)

    async def _leave_inside(
        self, room_id: RoomID, user_id: UserID, content: Mapping[str, Any], ended: str
    ) -> bool:
        """Leave a room that this server is in by now, where the invite or knock still stands;
        False: that is not known yet."""
        if not ended or (await self._engine.get_snapshot(room_id)).head.partial_join is not None:
            return not ended

        async def check(_: Sequence[Event]) -> None:
            if not await self._stands(room_id, user_id, ended):
                raise Forbidden("Something else has become of the membership")

        if await self._stands(room_id, user_id, ended):
            try:
                await self._engine.send(
                    room_id, [Draft(MEMBER, user_id, content, user_id, check=check)]
                )
            except MatrixError as error:
                self._log.info(
                    "{user} does not leave {room} for now: {error}",
                    user=user_id,
                    room=room_id,
                    error=error,
                )
                return False
        return True

    async def _stands(self, room_id: RoomID, user_id: UserID, event_id: str) -> bool:
        """Whether that is the user's membership in the present state."""
        key = StateKey(MEMBER, user_id)
        present = (await (await self._engine.get_snapshot(room_id)).state.load([key])).get(key)
        return present is not None and present.event.event_id == event_id

    def _report(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("other servers were not told that somebody left", failure)


def _is_final(error: Exception) -> bool:
    """Whether asking again would be of no use: that server is not in the room, or the user has no
    longer anything to leave there."""
    return isinstance(error, RefusedByRemote) and not error.retryable and error.errcode in _FINAL


def _pause_ms(attempts: int) -> int:
    return RETRIES.nth(attempts + 1)
