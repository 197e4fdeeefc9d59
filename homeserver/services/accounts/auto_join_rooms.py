"""The rooms that every new account joins.

That an account is to come into them is noted in the write that makes it, and taken away when it has
been tried. Those that a server leaves that ends meanwhile are tried again, by it after its start
where it is the only one, else by any node after a while. A room that does not let somebody in is
told to the operator, not to them; nor does one of servers that do not answer keep them waiting for
their account.
"""

from collections.abc import Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.ids import UserID
from federation.rooms.concurrent import wait_at_most
from homeserver.api.requester import Requester
from homeserver.services.rooms.membership import RoomMemberships
from storage.accounts.accounts import ALL_TIMES, AccountStore
from storage.engine.database import Database
from storage.engine.interface import DatabaseUnavailable
from storage.engine.transaction import WriteTransaction

WELCOMING_SECONDS: Final = 10
"""How long a new account waits for its rooms."""
MOST_AT_START: Final = 10_000
LEASE_MS: Final = 10 * 60_000
"""After so long somebody else lets an account in: there may be rooms of other servers, which take
their time."""


class FirstRooms:
    """Lets new accounts into rooms. What `Registration` asks of `Newcomers`."""

    def __init__(
        self,
        database: Database,
        accounts: AccountStore,
        memberships: RoomMemberships,
        rooms: Sequence[str],
        clock: IReactorTime,
    ) -> None:
        """`rooms`: aliases or ids."""
        self._database = database
        self._accounts = accounts
        self._memberships = memberships
        self._rooms = rooms
        self._clock = clock
        self._log = Logger()

    def note(self, txn: WriteTransaction, user_id: UserID) -> None:
        """In the write that makes the account."""
        self._accounts.add_arriving_account(txn, user_id, self._now_ms() + LEASE_MS)

    async def welcome(self, user_id: UserID) -> None:
        """Let the account join the rooms; what takes long is done afterwards."""
        await wait_at_most(
            self._join_all(user_id),
            WELCOMING_SECONDS,
            self._clock,
            lambda failure: self._log.failure(
                "{user_id} could not join the first rooms", failure, user_id=user_id
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
                    "{user_id} could not join {room}, which every new account shall: {error}",
                    user_id=user_id,
                    room=room,
                    error=str(error),
                )
        await self._database.write(
            "remove_arriving_account", self._accounts.remove_arriving_account, user_id
        )

    def start(self) -> None:
        """Let accounts join that had not yet when the server stopped: where there is no other node
        that may be at them."""
        Deferred.fromCoroutine(self.do_resume(MOST_AT_START, at_start=True)).addErrback(
            lambda failure: self._log.failure("new accounts join the first rooms later", failure)
        )

    async def do_resume(self, limit: int, *, at_start: bool = False) -> int:
        """Let up to so many accounts join that somebody left; how many. `at_start`: all that have
        not joined, as nobody is at them."""
        now = self._now_ms()
        due_by = ALL_TIMES if at_start else now
        until = now + LEASE_MS
        left = await self._accounts.take_arriving_accounts(due_by, until, limit)
        for number, user_id in enumerate(left):
            if self._now_ms() >= until:  # others may be at those that are left
                return number
            try:
                await self._join_all(UserID(user_id))
            except DatabaseUnavailable:  # that befalls all of them
                raise
            except Exception:
                self._log.failure("{user_id} joins the first rooms later", user_id=user_id)
        return len(left)

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)
