"""Invites of users of other servers with which a room is made: they are part of what was
acknowledged, and their servers may be slow.

Laws:
- They are written with the room, so that whatever ends the server ends none of them.
- Those of a room are sent by turns: invites that are made at the same time would fork it.
- Each is sent as long as who made the room may still invite: their account is asked before, and the
  room by the event.
- The room is there, so that one of them is refused, or fails, is no error of its making, and stands
  in no other's way. Nobody is invited of whom the room says more than that they knock: such as that
  they were invited before a crash, and have declined.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID
from federation.rooms.concurrent import wait_at_most
from federation.rooms.engine import RoomEngine
from federation.rooms.joins.invites import Invitations
from federation.rooms.membership_templates import MEMBER
from storage.engine.interface import DatabaseUnavailable
from storage.rooms.planned_invites import PlannedInvite, PlannedInviteStore
from storage.rooms.rooms import RoomRow, RoomStore

INVITING_SECONDS: Final = 20
"""How long who makes a room waits for the servers of whom they invite into it."""
LEASE_MS: Final = 5 * 60_000
"""After so long with one invite somebody else goes on with those of its room: much longer than a
server is waited for."""
MOST_LEFT: Final = 16
"""Rooms that somebody else left, in which a node goes on at a time; however many people make new
ones."""


class Plan(msgspec.Struct, frozen=True):
    """What is to be sent into a room, and until when (ms since 1970) it is the holder's."""

    invites: Sequence[PlannedInvite]
    held_until: int


class InviterGate(Protocol):
    """Whether our users may invite: known to the layer that knows them."""

    async def check_may_still_invite(self, inviter: UserID) -> None:
        """Whether somebody whose request was answered before may still invite as far as their
        account goes. Raises MatrixError."""
        ...


class PlannedInvites:
    """Sends them. For the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        store: PlannedInviteStore,
        rooms: RoomStore,
        engine: RoomEngine,
        invitations: Invitations,
        gate: InviterGate,
        clock: IReactorTime,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._rooms = rooms
        self._engine = engine
        self._invitations = invitations
        self._gate = gate
        self._clock = clock
        self._now_ms = now_ms
        self._beginning: set[Deferred[None]] = set()
        self._going_on: set[Deferred[None]] = set()
        """What sends into new rooms, and what goes on with what somebody left."""
        self._is_stopped = False

    def plan(self, sender: UserID, targets: Sequence[UserID], content: Mapping[str, Any]) -> Plan:
        """What is to be written with the room."""
        data = msgspec.json.encode(content)
        return Plan([PlannedInvite(target, sender, data) for target in targets], self._next_hold())

    async def do_send(self, room: RoomRow, plan: Plan) -> None:
        """Send those of a room that was just made. Servers that do not answer keep nobody waiting
        for long, who would think that there is no room, and make another: what is left is done
        afterwards."""
        task = self._begin(room, plan, self._beginning)

        async def wait() -> None:
            await task

        await wait_at_most(wait(), INVITING_SECONDS, self._clock, self._note_failure)

    def start(self) -> None:
        """Go on at once with what was left when the server stopped: where there is no other node
        that may be at it."""
        Deferred.fromCoroutine(self._resume_all()).addErrback(self._note_failure)

    async def _resume_all(self) -> None:
        await self._store.release()
        await self.do_resume(MOST_LEFT)

    async def do_resume(self, limit: int) -> int:
        """Begin with those of up to `limit` rooms that somebody left; of how many."""
        free = min(limit, MOST_LEFT - len(self._going_on))
        if free <= 0:
            return 0
        held_until = self._next_hold()
        left = await self._store.take_due(self._now_ms(), held_until, free)
        for room_nid, room in (await self._rooms.get_rooms_by_nid(left)).items():
            self._begin(room, Plan(left[room_nid], held_until), self._going_on)
        return len(left)

    def stop(self) -> None:
        """Send nothing more. The write is queued by which others may go on, as this node may after
        its next start."""
        self._is_stopped = True
        for task in (*self._beginning, *self._going_on):
            task.cancel()

    def _next_hold(self) -> int:
        return self._now_ms() + LEASE_MS

    def _begin(self, room: RoomRow, plan: Plan, tasks: "set[Deferred[None]]") -> "Deferred[None]":
        task = Deferred.fromCoroutine(self._send_by_turns(room, plan))
        tasks.add(task)
        return task.addErrback(self._note_failure).addBoth(lambda _: tasks.discard(task))

    def _note_failure(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("invites to a new room wait, and are sent later", failure)

    async def _send_by_turns(self, room: RoomRow, plan: Plan) -> None:
        held_until = plan.held_until
        following = [*(each.user_id for each in plan.invites[1:]), None]
        try:
            for invite, after in zip(plan.invites, following, strict=True):
                if not self._is_stopped:
                    await self._send(RoomID(room.room_id), invite)
                if self._is_stopped:  # whatever the sending came to
                    raise CancelledError
                held_before, held_until = held_until, self._next_hold()
                if not await self._store.go_on(
                    room.room_nid, invite.user_id, after, held_before, held_until
                ):
                    return
        except CancelledError:
            with suppress(DatabaseUnavailable):
                await self._store.give_back(room.room_nid, held_until)
            raise

    async def _send(self, room_id: RoomID, invite: PlannedInvite) -> None:
        """Raises DatabaseUnavailable."""
        try:
            member = await (await self._engine.get_snapshot(room_id)).state.get(
                StateKey(MEMBER, invite.user_id)
            )
            if member is None or member.event.membership == "knock":
                await self._gate.check_may_still_invite(UserID(invite.sender))
                content = msgspec.json.decode(invite.content)
                await self._invitations.do_invite(
                    room_id,
                    UserID(invite.sender),
                    UserID(invite.user_id),
                    content,
                    tries_failing=True,
                )
        except (MatrixError, RemoteError) as error:
            self._log.info(
                "{user} was not invited to a new room: {error}",
                user=invite.user_id,
                error=str(error),
            )
        except (CancelledError, DatabaseUnavailable):
            raise
        except (
            Exception
        ):  # whatever befalls one, the others are invited, and it is not tried for ever
            self._log.failure("{user} was not invited to a new room", user=invite.user_id)
