"""Auto-join rooms: the configured rooms that new accounts join, except guests and accounts of
application services.

The write that makes an account usable (its registration or its approval) also stores a row with a
lease for the pending joins. The node that wrote the row joins the account to the rooms, then
removes the row. If this node stops or fails before the row is removed, any node retries the joins
when the lease has expired. If the server has a single node, it also retries them at its next start.

A join that is refused, or that fails at a remote server, is logged for the operator and not
retried. It does not fail the registration. Unresponsive remote servers delay a registration by at
most `JOIN_WAIT_SECONDS`.
"""

from collections.abc import Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.ids import UserID
from federation.rooms.concurrency import wait_with_timeout
from homeserver.api.requester import Requester
from homeserver.services.rooms.membership import RoomMemberships
from storage.accounts.accounts import ALL_TIMES, AccountStore
from storage.engine.database import Database
from storage.engine.interface import DatabaseUnavailable
from storage.engine.transaction import WriteTransaction

JOIN_WAIT_SECONDS: Final = 10
"""Time limit of a registration that waits for the joins."""
MAX_AT_START: Final = 10_000
LEASE_MS: Final = 10 * 60_000
"""After this time another node may retry the joins; joins by way of other servers can be slow."""


class AutoJoinRooms:
    """Joins new accounts to rooms. Implements `NewAccountTasks`."""

    def __init__(
        self,
        *,
        database: Database,
        accounts: AccountStore,
        memberships: RoomMemberships,
        rooms: Sequence[str],
        clock: IReactorTime,
    ) -> None:
        """`rooms`: room aliases or IDs."""
        self._database = database
        self._accounts = accounts
        self._memberships = memberships
        self._rooms = rooms
        self._clock = clock
        self._log = Logger()

    def schedule(self, txn: WriteTransaction, user_id: UserID) -> None:
        """Store the pending joins, in the write that makes the account usable."""
        self._accounts.add_pending_auto_join(txn, user_id, self._now_ms() + LEASE_MS)

    async def run(self, user_id: UserID) -> None:
        """Join the rooms; slow joins continue in the background."""
        await wait_with_timeout(
            self._join_all(user_id),
            JOIN_WAIT_SECONDS,
            self._clock,
            lambda failure: self._log.failure(
                "{user_id} could not join the auto-join rooms", failure, user_id=user_id
            ),
        )

    async def _join_all(self, user_id: UserID) -> None:
        caller = Requester(user_id, None, 0, rate_limited=False)
        for room in self._rooms:
            try:
                room_id, servers = await self._memberships.resolve(caller, room, None)
                await self._memberships.do_join(caller, room_id, None, servers=servers)
            except (MatrixError, RemoteError) as error:
                self._log.warn(
                    "{user_id} could not join the auto-join room {room}: {error}",
                    user_id=user_id,
                    room=room,
                    error=str(error),
                )
        await self._database.write(
            "remove_pending_auto_join", self._accounts.remove_pending_auto_join, user_id
        )

    def start(self) -> None:
        """Retry the joins that were pending when the node stopped. Only for a single node."""
        Deferred.fromCoroutine(self.do_resume(MAX_AT_START, at_start=True)).addErrback(
            lambda failure: self._log.failure("auto-joins are retried later", failure)
        )

    async def do_resume(self, limit: int, *, at_start: bool = False) -> int:
        """Retry pending joins of up to `limit` accounts; return the number.

        `at_start`: ignore leases, as no other node can hold one.
        """
        now = self._now_ms()
        due_by = ALL_TIMES if at_start else now
        until = now + LEASE_MS
        leased = await self._accounts.lease_pending_auto_joins(due_by, until, limit)
        for number, user_id in enumerate(leased):
            if self._now_ms() >= until:  # other nodes may have taken the rest
                return number
            try:
                await self._join_all(UserID(user_id))
            except DatabaseUnavailable:  # the rest would fail too
                raise
            except Exception:
                self._log.failure("auto-joins of {user_id} are retried later", user_id=user_id)
        return len(leased)

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)
