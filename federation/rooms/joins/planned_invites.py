"""Invites remote users to a room after a local user has created it.

The servers of the invited users may be slow. So the client that creates the room waits only for a
limited time, and the remaining invites are sent afterwards.

Laws:
- The invites are written in the transaction that creates the room, so no crash loses any of them.
- The invites of one room are sent one after the other. Concurrent invites would fork the room.
- An invite is sent only while the room's creator may still invite. Before each invite, the state of
  the creator's account is checked. Each invite is then authorized like any other event.
- An invite that is refused or fails does not make the creation of the room fail, and does not
  prevent the other invites.
- A user who already has a membership other than a knock is not invited. For example, they may have
  received the invite before a crash, and have declined it.
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
from federation.rooms.concurrency import wait_with_timeout
from federation.rooms.engine import RoomEngine
from federation.rooms.joins.invites import Invitations
from federation.rooms.membership_templates import MEMBER
from storage.engine.interface import DatabaseUnavailable
from storage.rooms.pending_invites import PendingInvite, PendingInviteStore
from storage.rooms.rooms import RoomRow, RoomStore

INVITING_SECONDS: Final = 20
"""Time for which a client that creates a room waits for the invited users' servers."""
LEASE_MS: Final = 5 * 60_000
"""After this time with one invite another node may take over those of its room. It is much longer
than the timeout of a request."""
MAX_RESUMED_ROOMS: Final = 16
"""Rooms of stopped nodes that one node works on at a time. New rooms do not count."""


class PlannedInviteBatch(msgspec.Struct, frozen=True):
    """Invites to send into a room, and the end of the lease on them (ms since 1970)."""

    invites: Sequence[PendingInvite]
    lease_ends: int


class InviterChecks(Protocol):
    """Decides whether our users may invite. The layer that has their accounts implements it."""

    async def check_may_still_invite(self, inviter: UserID) -> None:
        """Check whether an account may still invite, after its request was answered.

        Raises MatrixError.
        """
        ...


class PlannedInviteSender:
    """Sends the invites to rooms that were just created. Use this class only on the reactor
    thread."""

    _log = Logger()

    def __init__(
        self,
        *,
        store: PendingInviteStore,
        rooms: RoomStore,
        engine: RoomEngine,
        invitations: Invitations,
        invite_policy: InviterChecks,
        clock: IReactorTime,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._rooms = rooms
        self._engine = engine
        self._invitations = invitations
        self._invite_policy = invite_policy
        self._clock = clock
        self._now_ms = now_ms
        self._new_tasks: set[Deferred[None]] = set()
        self._resumed_tasks: set[Deferred[None]] = set()
        """Tasks that continue with the invites of stopped nodes."""
        self._is_stopped = False

    def plan(
        self, sender: UserID, targets: Sequence[UserID], content: Mapping[str, Any]
    ) -> PlannedInviteBatch:
        """Return the invites to write with the room."""
        data = msgspec.json.encode(content)
        return PlannedInviteBatch(
            [PendingInvite(target, sender, data) for target in targets], self._lease_end()
        )

    async def do_send(self, room: RoomRow, plan: PlannedInviteBatch) -> None:
        """Send the invites of a new room, and wait for that with a time limit.

        A client that waits too long would think that the room does not exist, and create another.
        The rest is sent afterwards.
        """
        task = self._start(room, plan, self._new_tasks)

        async def wait() -> None:
            await task

        await wait_with_timeout(wait(), INVITING_SECONDS, self._clock, self._log_failure)

    def start(self) -> None:
        """Continue at once with the invites that this node left when it stopped.

        Call it only where no other node may be working on them.
        """
        Deferred.fromCoroutine(self._resume_all()).addErrback(self._log_failure)

    async def _resume_all(self) -> None:
        await self._store.end_all_leases()
        await self.do_resume(MAX_RESUMED_ROOMS)

    async def do_resume(self, limit: int) -> int:
        """Start on up to `limit` rooms whose lease has ended; return their number."""
        free = min(limit, MAX_RESUMED_ROOMS - len(self._resumed_tasks))
        if free <= 0:
            return 0
        held_until = self._lease_end()
        left = await self._store.lease_due(self._now_ms(), held_until, free)
        for room_nid, room in (await self._rooms.get_rooms_by_nid(left)).items():
            self._start(room, PlannedInviteBatch(left[room_nid], held_until), self._resumed_tasks)
        return len(left)

    def stop(self) -> None:
        """Stop sending, and queue the write that ends the lease, so that another node may go on."""
        self._is_stopped = True
        for task in (*self._new_tasks, *self._resumed_tasks):
            task.cancel()

    def _lease_end(self) -> int:
        return self._now_ms() + LEASE_MS

    def _start(
        self, room: RoomRow, plan: PlannedInviteBatch, tasks: "set[Deferred[None]]"
    ) -> "Deferred[None]":
        task = Deferred.fromCoroutine(self._send_all(room, plan))
        tasks.add(task)
        return task.addErrback(self._log_failure).addBoth(lambda _: tasks.discard(task))

    def _log_failure(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("invites to a new room are delayed and sent later", failure)

    async def _send_all(self, room: RoomRow, plan: PlannedInviteBatch) -> None:
        held_until = plan.lease_ends
        next_users = [*(each.user_id for each in plan.invites[1:]), None]
        try:
            for invite, after in zip(plan.invites, next_users, strict=True):
                if not self._is_stopped:
                    await self._send(RoomID(room.room_id), invite)
                if self._is_stopped:  # whether or not the invite was sent
                    raise CancelledError
                old_lease, held_until = held_until, self._lease_end()
                if not await self._store.advance(
                    room.room_nid, invite.user_id, after, old_lease, held_until
                ):
                    return
        except CancelledError:
            with suppress(DatabaseUnavailable):
                await self._store.end_lease(room.room_nid, held_until)
            raise

    async def _send(self, room_id: RoomID, invite: PendingInvite) -> None:
        """Send one invite; log a failure. Raises DatabaseUnavailable."""
        try:
            member = await (await self._engine.get_snapshot(room_id)).state.get(
                StateKey(MEMBER, invite.user_id)
            )
            if member is None or member.event.membership == "knock":
                await self._invite_policy.check_may_still_invite(UserID(invite.sender))
                content = msgspec.json.decode(invite.content)
                await self._invitations.do_invite(
                    room_id,
                    UserID(invite.sender),
                    UserID(invite.user_id),
                    content,
                    ask_unreachable=True,
                )
        except (MatrixError, RemoteError) as error:
            self._log.info(
                "{user} was not invited to a new room: {error}",
                user=invite.user_id,
                error=str(error),
            )
        except (CancelledError, DatabaseUnavailable):
            raise
        except Exception:  # one bad invite must not block the others, or be retried forever
            self._log.failure("{user} was not invited to a new room", user=invite.user_id)
