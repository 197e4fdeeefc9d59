"""Invites of users of other servers with which a room is made: they are part of what was acknowledged, and their servers may be slow.

Laws:
- They are written with the room, so that whatever ends the server ends none of them.
- Those of a room are sent by turns: invites that are made at the same time would fork it.
- The room is there, so that one of them is refused is no error of its making. Nobody is invited of whom the room says something already:
  such as that they were invited before a crash, and have declined.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.events import StateKey
from federation.protocol.ids import RoomID, UserID
from federation.rooms.concurrent import wait_at_most
from federation.rooms.drafts import Also
from federation.rooms.engine import RoomEngine
from federation.rooms.invitations import Invitations
from federation.rooms.templates import MEMBER
from storage.planned_invites import PlannedInvite, PlannedInviteStore, add_planned_invites
from storage.rooms import RoomStore

INVITING_SECONDS: Final = 20
"""How long who makes a room waits for the servers of whom they invite into it."""
LEASE_MS: Final = 5 * 60_000
"""After so long with one invite somebody else goes on with those of its room: much longer than a server is waited for."""
MOST_ROOMS: Final = 16
"""As long as a node sends invites to so many, it takes none that somebody else left."""


class PlannedInvites:
    """Sends them. For the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        store: PlannedInviteStore,
        rooms: RoomStore,
        engine: RoomEngine,
        invitations: Invitations,
        clock: IReactorTime,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._rooms = rooms
        self._engine = engine
        self._invitations = invitations
        self._clock = clock
        self._now_ms = now_ms
        self._tasks: set[Deferred[None]] = set()
        """Those that send."""

    def planning(self, sender: UserID, targets: Sequence[UserID], content: Mapping[str, Any]) -> Also:
        """What is to be written with the room."""
        data = msgspec.json.encode(content)
        return lambda txn, room: add_planned_invites(
            txn, room.room_nid, targets, sender, data, self._now_ms() + LEASE_MS
        )

    async def do_send(self, room_nid: int) -> None:
        """Send those of a room that was just made. Servers that do not answer keep nobody waiting for long, who would think that there is
        no room, and make another: what is left is done afterwards."""
        task = self._begin(room_nid)

        async def wait() -> None:
            await task

        await wait_at_most(wait(), INVITING_SECONDS, self._clock, self._note_failure)

    async def do_resume(self, limit: int) -> int:
        """Begin with those of up to `limit` rooms that somebody left; of how many."""
        now = self._now_ms()
        free = min(limit, MOST_ROOMS - len(self._tasks))
        room_nids = await self._store.take_due(now, now + LEASE_MS, free) if free > 0 else []
        for room_nid in room_nids:
            self._begin(room_nid)
        return len(room_nids)

    def stop(self) -> None:
        """Send nothing more; what was being sent is sent again some time after the next start."""
        for task in list(self._tasks):
            task.cancel()

    def _begin(self, room_nid: int) -> "Deferred[None]":
        task = Deferred.fromCoroutine(self._send_by_turns(room_nid))
        self._tasks.add(task)
        return task.addErrback(self._note_failure).addBoth(lambda _: self._tasks.discard(task))

    def _note_failure(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("invites to a new room wait, and are sent later", failure)

    async def _send_by_turns(self, room_nid: int) -> None:
        done: str | None = None
        room_id = RoomID((await self._rooms.get_rooms_by_nid([room_nid]))[room_nid].room_id)
        while (invite := await self._store.go_on(room_nid, done, self._now_ms() + LEASE_MS)) is not None:
            try:
                await self._send(room_id, invite)
            except (MatrixError, RemoteError) as error:
                self._log.info("{user} was not invited to a new room: {error}", user=invite.user_id, error=str(error))
            done = invite.user_id

    async def _send(self, room_id: RoomID, invite: PlannedInvite) -> None:
        snapshot = await self._engine.get_snapshot(room_id)
        if await snapshot.state.get(StateKey(MEMBER, invite.user_id)) is None:
            content = msgspec.json.decode(invite.content)
            await self._invitations.do_invite(room_id, UserID(invite.sender), UserID(invite.user_id), content)
