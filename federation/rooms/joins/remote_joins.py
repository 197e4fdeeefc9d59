"""Joins and knocks on rooms that this server is not in, through a server that is in the room.

Leaving such rooms is in `remote_leaves.py`.

Laws:
- A server's response is trusted only as far as its events prove it (`join_import.py`). If the
  response is invalid, the user does not join here. Other servers already count the user as joined,
  so we then try to send a leave through the same server.
- If two of our users join the same room at the same time, only the first joins through a server in
  the room. The second then joins like any user in a room that this server is in.

spec: server-server-api#joining-rooms, server-server-api#leaving-rooms-rejecting-invites,
server-server-api#knocking-rooms
"""

import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from twisted.logger import Logger

from federation.peers.fair_semaphore import FairSemaphore
from federation.peers.identity import ServerIdentity
from federation.protocol.errors import BadState, Forbidden, InvalidParam, MatrixError, RemoteError
from federation.protocol.events import Event
from federation.protocol.ids import (
    RoomID,
    ServerName,
    UserID,
    domain_of,
    is_server_name,
    is_user_id,
)
from federation.protocol.stripped_state import strip_event
from federation.remote.membership import JoinedState, MembershipClient
from federation.rooms.joins.join_import import JoinImporter, RemoteRoomInfo
from federation.rooms.joins.out_of_room import OutOfRoomMemberships
from federation.rooms.joins.stripped_rooms import read_knock_state
from federation.rooms.membership_templates import AUTHORISER, TemplateRequests, with_signature_of
from federation.rooms.receipt_checks import SHOWN
from federation.rooms.receive.check_sources import CheckServices
from federation.rooms.receive.receiver import Receiver
from federation.rooms.receive.state_imports import StateImports, get_stored_ids
from federation.rooms.server_fallback import ServerFallback
from federation.rooms.server_in_room import ServerInRoom
from storage.federation.pending_leaves import PendingLeaveStore
from storage.rooms.rooms import RoomStore

MAX_JOIN_MS: Final = 3_600_000
MAX_SERVERS: Final = 2_000
"""Servers in a room that we accept from a response."""


class RemoteJoins:
    """Joins and knocks through other servers. Use this class only on the reactor thread."""

    _log = Logger()

    # More than ten: a join goes through request, checks, import and storage.
    def __init__(
        self,
        *,
        remote: MembershipClient,
        handshake: TemplateRequests,
        candidates: ServerFallback,
        server_in_room: ServerInRoom,
        rooms: RoomStore,
        importer: JoinImporter,
        receiver: Receiver,
        imports: StateImports,
        out_of_room: OutOfRoomMemberships,
        services: CheckServices,
        pending_leaves: PendingLeaveStore,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
        use_partial_state: bool,
    ) -> None:
        """`use_partial_state`: join large rooms with partial state, and fetch the rest
        afterwards."""
        self._remote = remote
        self._handshake = handshake
        self._fallback = candidates
        self._server_in_room = server_in_room
        self._rooms = rooms
        self._importer = importer
        self._receiver = receiver
        self._imports = imports
        self._outside = out_of_room
        self._services = services
        self._pending_leaves = pending_leaves
        self._identity = identity
        self._now_ms = now_ms
        self._omits_members = use_partial_state
        self._joining: FairSemaphore[RoomID] = FairSemaphore(permits=sys.maxsize, permits_per_key=1)

    async def join(
        self, room_id: RoomID, user_id: UserID, content: Mapping[str, Any], servers: Iterable[str]
    ) -> bool:
        """Join a room through one of these servers. Return False if another local user has joined
        meanwhile.

        Raises NotFound, Forbidden, UnsupportedRoomVersion, OtherServerFailed.
        """

        async def enter(server: ServerName) -> None:
            await self._enter(server, room_id, user_id, content)

        is_first = not self._joining.held(room_id)
        async with self._joining.hold(room_id):
            if not is_first and await self._server_in_room.find(room_id) is not None:
                return False
            async with self._entering(room_id, user_id):
                await self._fallback.run(servers, enter)
        return True

    async def join_through(
        self, room_id: RoomID, user_id: UserID, content: Mapping[str, Any], servers: Iterable[str]
    ) -> None:
        """Join a room that we are in through another server.

        This is needed when no local user may authorise the join, or the room has partial state.
        Raises NotFound, Forbidden, OtherServerFailed.
        """

        async def ask(server: ServerName) -> None:
            in_part = await self._has_partial_state(room_id)
            async with self._join_through(
                server, room_id, user_id, content, omit_members=in_part
            ) as (event, answer):
                await self._receive(server, event, answer)

        await self._fallback.run(servers, ask)

    async def knock(
        self, room_id: RoomID, user_id: UserID, content: Mapping[str, Any], servers: Iterable[str]
    ) -> None:
        """Knock on a room. Raises NotFound, Forbidden, UnsupportedRoomVersion,
        OtherServerFailed."""

        async def ask(server: ServerName) -> None:
            event = await self._handshake.make(server, "knock", room_id, user_id, content)
            response = await self._remote.send_knock(server, event)
            try:
                state = await read_knock_state(self._services, event.version, room_id, response)
            except InvalidParam:
                state = []  # the knock was accepted nevertheless
            await self._outside.store(event, server, [strip_event(event), *state])

        async with self._entering(room_id, user_id):
            await self._fallback.run(servers, ask)

    @asynccontextmanager
    async def _entering(self, room_id: RoomID, user_id: UserID) -> AsyncIterator[None]:
        """Hold back pending leaves of the room on all nodes while the user enters it.

        Leaves of other local users are sent when it is known whether we are in the room.
        """
        await self._pending_leaves.set_due(room_id, self._now_ms() + MAX_JOIN_MS)
        try:
            yield
        except (RemoteError, MatrixError):
            await self._pending_leaves.set_due(room_id, self._now_ms())
            raise
        await self._pending_leaves.remove_of_user(room_id, user_id, self._now_ms())

    @asynccontextmanager
    async def _join_through(
        self,
        server: ServerName,
        room_id: RoomID,
        user_id: UserID,
        content: Mapping[str, Any],
        *,
        omit_members: bool,
    ) -> AsyncIterator[tuple[Event, JoinedState]]:
        event = await self._handshake.make(server, "join", room_id, user_id, content)
        async with self._remote.send_join(server, event, omit_members=omit_members) as answer:
            authoriser = event.content.get(AUTHORISER)
            if answer.event is not None and isinstance(authoriser, str) and is_user_id(authoriser):
                event = with_signature_of(event, domain_of(authoriser), answer.event)
            yield event, answer

    async def _enter(
        self, server: ServerName, room_id: RoomID, user_id: UserID, content: Mapping[str, Any]
    ) -> None:
        async with self._join_through(
            server, room_id, user_id, content, omit_members=self._omits_members
        ) as (event, answer):
            await self._import_join(server, room_id, user_id, event, answer)

    async def _import_join(
        self,
        server: ServerName,
        room_id: RoomID,
        user_id: UserID,
        event: Event,
        answer: JoinedState,
    ) -> None:
        try:
            servers = _servers(server, answer, self._identity.server_name)
            room_part = RemoteRoomInfo(server, servers, answer.members_omitted)
            await self._importer.import_join(
                event.version, room_id, answer.state, answer.auth_chain, event.pdu, room_part
            )
        except MatrixError:
            if await self._server_in_room.find(room_id) is not None:
                await self._receive(server, event, answer)  # another node has joined meanwhile
                return
            await self._undo_join(server, room_id, user_id)
            raise

    async def _has_partial_state(self, room_id: RoomID) -> bool:
        snapshot = await self._server_in_room.find(room_id)
        return snapshot is not None and snapshot.head.partial_join is not None

    async def _receive(self, server: ServerName, event: Event, answer: JoinedState) -> None:
        """Receive a join into a room that this server is in. Raises Forbidden, BadState."""
        room_id = event.room_id
        (outcome,) = await self._receiver.receive(room_id, [event.pdu])
        if outcome.is_waiting:
            if answer.members_omitted and not await self._has_partial_state(room_id):
                raise BadState(
                    "The room has complete state by now, and the response has only a part of it"
                )
            room = (await self._rooms.get_rooms([room_id]))[room_id]
            outcomes = await self._imports.store(room, [*answer.auth_chain, *answer.state])
            state = get_stored_ids(outcomes[len(answer.auth_chain) :])
            (outcome,) = await self._receiver.receive(
                room_id, [event.pdu], states={event.event_id: state}
            )
        if outcome.was_known:
            return
        if outcome.verdict not in SHOWN:
            raise outcome.error or Forbidden(f"The join that {server} accepted is not allowed")

    async def _undo_join(self, server: ServerName, room_id: RoomID, user_id: UserID) -> None:
        """Try to let our user leave again, because other servers have them in the room."""
        try:
            event = await self._handshake.make(
                server, "leave", room_id, user_id, {"membership": "leave"}
            )
            await self._remote.send_leave(server, event)
        except (RemoteError, MatrixError) as error:
            self._log.info(
                "{server} still has {user} in a room: {error}",
                server=server,
                user=user_id,
                error=error,
            )


def _servers(resident: ServerName, answer: JoinedState, own: ServerName) -> list[ServerName]:
    """Return the other servers in the room according to the response, with the one we joined
    through."""
    named = dict.fromkeys(
        [resident, *(ServerName(name) for name in answer.servers_in_room if is_server_name(name))]
    )
    return [server for server in named if server != own][:MAX_SERVERS]
