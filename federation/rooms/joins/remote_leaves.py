"""Declines invites and withdraws knocks in rooms that this server is not in.

Laws:
- The leave is stored here even if no other server responds.
- The leave is sent to each server that sent us an invite or received the knock. The transaction
  that stores the leave also stores the servers that have not received it yet. Each of them is
  retried for a week with growing pauses, unless it refuses the leave with M_FORBIDDEN or
  M_NOT_FOUND. A server that responds 429 is not retried before the time that it names. If the user
  has a newer membership in the room, the leave is not sent any more.
- Other local users may join the room before the leave is sent. If the room's state then still
  contains the invite or knock, the leave is added to the room like that of a local member.

spec: server-server-api#leaving-rooms-rejecting-invites
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.client import RefusedByRemote
from federation.peers.identity import ServerIdentity
from federation.peers.peer_backoff import PeerBackoff
from federation.protocol.errors import Forbidden, MatrixError, RemoteError
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID, RoomID, ServerName, UserID, is_server_name
from federation.remote.membership import MembershipClient
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Draft
from federation.rooms.joins.out_of_room import OutOfRoomMemberships
from federation.rooms.membership_templates import TemplateRequests, make_local_leave
from federation.rooms.server_fallback import ServerFallback
from federation.rooms.server_in_room import ServerInRoom
from storage.federation.pending_leaves import PendingLeave, PendingLeaveStore
from storage.rooms.rooms import RoomStore

MEMBER: Final = "m.room.member"
MAX_SERVERS: Final = 3
"""Servers to which the leave is sent while the client waits."""
CONCURRENT_SERVERS: Final = 16
"""Servers that leaves are sent to at the same time."""
RETRIES: Final = BackoffSchedule(5 * 60_000, 6 * 3_600_000)
MAX_RETRY_MS: Final = 7 * 24 * 3_600_000
"""A leave is retried for this time."""
_FINAL: Final = frozenset({"M_FORBIDDEN", "M_NOT_FOUND"})


class RemoteLeaves:
    """Lets our users leave rooms that this server is not in. Use this class only on the reactor
    thread."""

    _log = Logger()

    def __init__(
        self,
        *,
        remote: MembershipClient,
        handshake: TemplateRequests,
        candidates: ServerFallback,
        server_in_room: ServerInRoom,
        rooms: RoomStore,
        out_of_room: OutOfRoomMemberships,
        store: PendingLeaveStore,
        engine: RoomEngine,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
    ) -> None:
        self._remote = remote
        self._handshake = handshake
        self._fallback = candidates
        self._server_in_room = server_in_room
        self._rooms = rooms
        self._outside = out_of_room
        self._store = store
        self._engine = engine
        self._identity = identity
        self._now_ms = now_ms
        self._backoff: PeerBackoff[ServerName] = PeerBackoff(now_ms=now_ms)
        self._tasks: dict[ServerName, Deferred[None]] = {}
        self._is_stopped = False

    async def leave(
        self, room_id: RoomID, user_id: UserID, content: Mapping[str, Any], servers: Iterable[str]
    ) -> None:
        """Decline an invite, or withdraw a knock; only locally if no server can be reached now.

        If several servers sent invites, the others get the leave later: the server that answers
        may not be in the room.
        """
        room = await self._rooms.get_room(room_id)
        assert room is not None, "the user has a membership in the room"
        named = [ServerName(name) for name in dict.fromkeys(servers) if is_server_name(name)]
        sources = await self._outside.find_servers(room.room_nid, user_id)
        pending: dict[str, str] = (
            dict(sources.items()) if sources else dict.fromkeys(named[:MAX_SERVERS], "")
        )
        pending.pop(self._identity.server_name, None)
        reachable = [server for server in named if not self._backoff.left_ms(server)]

        async def ask(server: ServerName) -> None:
            try:
                event = await self._handshake.make(server, "leave", room_id, user_id, content)
                await self._remote.send_leave(server, event)
            except RefusedByRemote as refusal:
                if _is_final(refusal):
                    pending.pop(server, None)
                self._backoff.record_failure(server, refusal)
                raise
            pending.pop(server, None)
            await self._outside.store(event, server, (), pending if sources else None)

        try:
            await self._fallback.run(reachable, ask, max_servers=MAX_SERVERS)
        except MatrixError as error:
            self._log.info(
                "no server accepts for now that {user} left {room}: {error}",
                user=user_id,
                room=room_id,
                error=error,
            )
            version = await self._outside.find_version(room, user_id)
            left = make_local_leave(
                version, self._identity, room_id, user_id, content, self._now_ms()
            )
            await self._outside.store(left, self._identity.server_name, (), pending)
        for name in pending:
            if left_ms := self._backoff.left_ms(ServerName(name)):
                await self._store.postpone_server(name, self._now_ms() + left_ms)
        if pending:
            Deferred.fromCoroutine(self.do_send_pending(CONCURRENT_SERVERS)).addErrback(
                self._report
            )

    async def do_send_pending(self, _limit: int) -> int:
        """Start sending pending leaves, and do not wait for them."""
        for name in await self._store.get_due_servers(self._now_ms(), 2 * CONCURRENT_SERVERS):
            server = ServerName(name)
            if (
                server not in self._tasks
                and len(self._tasks) < CONCURRENT_SERVERS
                and not self._is_stopped
            ):
                task = Deferred.fromCoroutine(self._send_to_server(server)).addErrback(self._report)
                if not task.called:
                    self._tasks[server] = task.addBoth(self._on_sent, server)
        return 0

    def stop(self) -> None:
        """Stop sending. Leaves that were being sent are retried after the next start."""
        self._is_stopped = True
        for task in list(self._tasks.values()):
            task.cancel()

    def _on_sent(self, _result: None, server: ServerName) -> None:
        self._tasks.pop(server, None)

    async def _send_to_server(self, server: ServerName) -> None:
        """Send a server its pending leaves one by one, until it cannot be reached."""
        while (leave := await self._store.lease_due(server, self._now_ms(), _pause_ms)) is not None:
            is_last = self._now_ms() - leave.left_ts >= MAX_RETRY_MS
            try:
                is_done = await self._send_leave(server, leave)
            except (RemoteError, MatrixError) as error:
                self._log.info(
                    "{server} does not accept{end} that {user} left: {error}",
                    server=server,
                    end="" if is_last or _is_final(error) else " for now",
                    user=leave.user_id,
                    error=error,
                )
                self._backoff.record_failure(server, error)
                if not _is_final(error):
                    await self._store.postpone(
                        leave, self._now_ms() + self._backoff.left_ms(server)
                    )
                    if not is_last:
                        return
                is_done = True
            if is_done or is_last:
                await self._store.remove(leave)

    async def _send_leave(self, server: ServerName, leave: PendingLeave) -> bool:
        """Send one leave, unless the user has a newer membership by now.

        Return False if it has to be retried though the server could be reached. Raises RemoteError,
        MatrixError.
        """
        (room,) = (await self._rooms.get_rooms_by_nid([leave.room_nid])).values()
        room_id, user_id = RoomID(room.room_id), UserID(leave.user_id)
        left = await self._outside.find_last(room, user_id, EventID(leave.event_id))
        if left is None:
            return True
        if await self._server_in_room.find(room_id) is None:
            event = await self._handshake.make(server, "leave", room_id, user_id, left.content)
            if not await self._store.is_unchanged(leave):
                return False
            if await self._server_in_room.find(room_id) is None:
                await self._remote.send_leave(server, event)
                return True
        return await self._leave_in_room(room_id, user_id, left.content, leave.ended_event_id)

    async def _leave_in_room(
        self, room_id: RoomID, user_id: UserID, content: Mapping[str, Any], ended: str
    ) -> bool:
        """Leave a room that this server is in by now, if the invite or knock is still current.

        Return False if that is not known yet.
        """
        if not ended or (await self._engine.get_snapshot(room_id)).head.partial_join is not None:
            return not ended

        async def check(_: Sequence[Event]) -> None:
            if not await self._is_current(room_id, user_id, ended):
                raise Forbidden("The membership has changed meanwhile")

        if await self._is_current(room_id, user_id, ended):
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

    async def _is_current(self, room_id: RoomID, user_id: UserID, event_id: str) -> bool:
        """Return whether that event is the user's membership in the current state."""
        key = StateKey(MEMBER, user_id)
        present = (await (await self._engine.get_snapshot(room_id)).state.load([key])).get(key)
        return present is not None and present.event.event_id == event_id

    def _report(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("pending leaves were not sent", failure)


def _is_final(error: Exception) -> bool:
    """Return whether a retry is useless: the server is not in the room, or the user has nothing to
    leave there."""
    return isinstance(error, RefusedByRemote) and not error.retryable and error.errcode in _FINAL


def _pause_ms(attempts: int) -> int:
    return RETRIES.nth(attempts + 1)
