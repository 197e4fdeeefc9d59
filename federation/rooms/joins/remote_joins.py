"""Into rooms that this server is not in: the handshakes that we ask for. (Out of them:
`remote_leaves.py`.)

Laws:
- What a server says of a room is believed as far as its events prove it (`join_import.py`). When it
  cannot be believed, our join is taken back as well as that goes, and nobody here is in the room.
- Two of our users who want into the same room at once make one handshake; the second then joins
  like anyone here.

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
from federation.remote.membership import JoinedState, MembershipRequests
from federation.rooms.check import SHOWN
from federation.rooms.joins.join_import import Adoptions, Part
from federation.rooms.joins.out_of_room import OutsideMemberships
from federation.rooms.joins.stripped_rooms import read_knock_state
from federation.rooms.membership_templates import AUTHORISER, Handshake, with_signature_of
from federation.rooms.receive.check_sources import Questions
from federation.rooms.receive.receiver import Receiver
from federation.rooms.receive.state_imports import StateImports, kept_ids
from federation.rooms.server_fallback import Candidates
from federation.rooms.server_in_room import Residence
from storage.federation.pending_leaves import UntoldLeaveStore
from storage.rooms.rooms import RoomStore

LONGEST_ENTRY_MS: Final = 3_600_000
MAX_SERVERS: Final = 2_000
"""Servers of a room that we are told of."""


class RemoteMemberships:
    """Changes memberships of our users in rooms elsewhere. For the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        remote: MembershipRequests,
        handshake: Handshake,
        candidates: Candidates,
        residence: Residence,
        rooms: RoomStore,
        adoptions: Adoptions,
        receiver: Receiver,
        imports: StateImports,
        outside: OutsideMemberships,
        questions: Questions,
        untold: UntoldLeaveStore,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
        *,
        in_part: bool,
    ) -> None:
        """`in_part`: large rooms are entered with a part of their state, and the rest is fetched
        afterwards."""
        self._remote = remote
        self._handshake = handshake
        self._candidates = candidates
        self._residence = residence
        self._rooms = rooms
        self._adoptions = adoptions
        self._receiver = receiver
        self._imports = imports
        self._outside = outside
        self._questions = questions
        self._untold = untold
        self._identity = identity
        self._now_ms = now_ms
        self._in_part = in_part
        self._joining: FairSemaphore[RoomID] = FairSemaphore(sys.maxsize, 1)

    async def join(
        self, room_id: RoomID, user_id: UserID, content: Mapping[str, Any], servers: Iterable[str]
    ) -> bool:
        """Enter a room through one of these servers; False when others of this server have done so
        meanwhile.

        Raises NotFound, Forbidden, UnsupportedRoomVersion, OtherServerFailed.
        """

        async def enter(server: ServerName) -> None:
            await self._enter(server, room_id, user_id, content)

        is_first = not self._joining.held(room_id)
        async with self._joining.hold(room_id):
            if not is_first and await self._residence.find(room_id) is not None:
                return False
            async with self._entering(room_id, user_id):
                await self._candidates.ask(servers, enter)
        return True

    async def join_vouched_for(
        self, room_id: RoomID, user_id: UserID, content: Mapping[str, Any], servers: Iterable[str]
    ) -> None:
        """Join a room that this server is in, by the word of another: nobody here may let the user
        in, or a part of the room's state is lacking here.

        Raises NotFound, Forbidden, OtherServerFailed.
        """

        async def ask(server: ServerName) -> None:
            in_part = await self._is_in_part(room_id)
            async with self._shake_hands(
                server, room_id, user_id, content, omit_members=in_part
            ) as (event, answer):
                await self._receive(server, event, answer)

        await self._candidates.ask(servers, ask)

    async def knock(
        self, room_id: RoomID, user_id: UserID, content: Mapping[str, Any], servers: Iterable[str]
    ) -> None:
        """Ask to be let in. Raises NotFound, Forbidden, UnsupportedRoomVersion,
        OtherServerFailed."""

        async def ask(server: ServerName) -> None:
            event = await self._handshake.make(server, "knock", room_id, user_id, content)
            told = await self._remote.send_knock(server, event)
            try:
                state = await read_knock_state(self._questions, event.version, room_id, told)
            except InvalidParam:
                state = []  # the knock has been made all the same
            await self._outside.keep(event, server, [strip_event(event), *state])

        async with self._entering(room_id, user_id):
            await self._candidates.ask(servers, ask)

    @asynccontextmanager
    async def _entering(self, room_id: RoomID, user_id: UserID) -> AsyncIterator[None]:
        """The user is about to enter: no server is told meanwhile that they left before, by
        whichever node of this server; what others declined is told when it is known whether we are
        in the room."""
        await self._untold.set_due(room_id, self._now_ms() + LONGEST_ENTRY_MS)
        try:
            yield
        except (RemoteError, MatrixError):
            await self._untold.set_due(room_id, self._now_ms())
            raise
        await self._untold.forget(room_id, user_id, self._now_ms())

    @asynccontextmanager
    async def _shake_hands(
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
        async with self._shake_hands(
            server, room_id, user_id, content, omit_members=self._in_part
        ) as (event, answer):
            await self._take_in(server, room_id, user_id, event, answer)

    async def _take_in(
        self,
        server: ServerName,
        room_id: RoomID,
        user_id: UserID,
        event: Event,
        answer: JoinedState,
    ) -> None:
        try:
            servers = _servers(server, answer, self._identity.server_name)
            part = Part(server, servers, answer.members_omitted)
            await self._adoptions.adopt(
                event.version, room_id, answer.state, answer.auth_chain, event.pdu, part
            )
        except MatrixError:
            if await self._residence.find(room_id) is not None:
                await self._receive(server, event, answer)  # another node of this server was faster
                return
            await self._take_back(server, room_id, user_id)
            raise

    async def _is_in_part(self, room_id: RoomID) -> bool:
        snapshot = await self._residence.find(room_id)
        return snapshot is not None and snapshot.head.partial_join is not None

    async def _receive(self, server: ServerName, event: Event, answer: JoinedState) -> None:
        """Take a join into a room that this server is in. Raises Forbidden, BadState."""
        room_id = event.room_id
        (outcome,) = await self._receiver.receive(room_id, [event.pdu])
        if outcome.is_waiting:
            if answer.members_omitted and not await self._is_in_part(room_id):
                raise BadState(
                    "The room has become whole meanwhile, and what is told of a part is too little"
                )
            room = (await self._rooms.get_rooms([room_id]))[room_id]
            outcomes = await self._imports.keep(room, [*answer.auth_chain, *answer.state])
            state = kept_ids(outcomes[len(answer.auth_chain) :])
            (outcome,) = await self._receiver.receive(
                room_id, [event.pdu], states={event.event_id: state}
            )
        if outcome.was_known:
            return
        if outcome.verdict not in SHOWN:
            raise outcome.error or Forbidden(f"The join that {server} let pass is not allowed")

    async def _take_back(self, server: ServerName, room_id: RoomID, user_id: UserID) -> None:
        """The others think that our user is in the room: let them leave again, if that can be
        done."""
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
    """The other servers in the room, as we are told: the one that let us in is among them whatever
    it says."""
    named = dict.fromkeys(
        [resident, *(ServerName(name) for name in answer.servers_in_room if is_server_name(name))]
    )
    return [server for server in named if server != own][:MAX_SERVERS]
