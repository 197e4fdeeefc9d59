"""Sends an empty transaction to each server that the federation policy blocked and now allows
again.

While a server is blocked, we look unreachable to it, so it queues its transactions for us. It
retries after a pause of an hour or more, or after it receives something from us. Our own unsent
data would have the same effect (`transaction_sender.py`), but there may be none. If the empty
transaction fails, the server's own retry follows soon enough.

This module learns of a blocked server from its requests, which are refused before their signatures
are checked. So the server name in a request may be made up. The module looks up each name, and
keeps it only if that server shares a room with us. So made-up names take no space, and nothing is
sent to them. The names are kept in memory, until a restart.
"""

from collections.abc import Coroutine
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.peers.federation_policy import FederationPolicy
from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.ids import ServerName
from federation.remote.transactions import FederationTransaction, TransactionClient
from federation.rooms.concurrency import map_concurrently
from storage.rooms.room_servers import RoomServerStore

MAX_CONCURRENT: Final = 10
PAUSE: Final = 1.0
"""Seconds after one transaction before the next one is sent in its place."""
MAX_NAMES: Final = 500
"""Server names that are looked up together. Further names are dropped until the look-up is
done."""
MAX_REFUSED: Final = 10_000
"""Blocked servers that are stored. With more of them in our rooms, the others have to wait for
their own retry."""


class UnblockedServerNotifier:
    """Sends the empty transactions. Each node does so for the servers that it has refused itself.
    Use this class only on the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        *,
        policy: FederationPolicy,
        store: RoomServerStore,
        transactions: TransactionClient,
        clock: IReactorTime,
    ) -> None:
        self._policy = policy
        self._store = store
        self._transactions = transactions
        self._clock = clock
        self._names: set[ServerName] = set()
        """Names from refused requests, not yet looked up."""
        self._is_looking_up = False
        self._refused: dict[ServerName, None] = {}
        """Refused servers that are in one of our rooms."""
        self._is_notifying = False
        policy.watch_refused(self._record)
        policy.subscribe(self._on_policy_change)

    def _record(self, server: ServerName) -> None:
        if server in self._refused or len(self._names) >= MAX_NAMES:
            return
        self._names.add(server)
        if not self._is_looking_up:
            self._is_looking_up = True
            self._run(self._look_up())

    async def _look_up(self) -> None:
        """Look up which of the names are servers in our rooms, until no new names are left."""
        try:
            while self._names:
                names, self._names = self._names, set()
                found = [ServerName(server) for server in await self._store.get_sharing(names)]
                self._refused |= dict.fromkeys(found[: MAX_REFUSED - len(self._refused)])
                if any(map(self._policy.allows, found)):  # the policy has changed meanwhile
                    self._on_policy_change()
        finally:
            self._is_looking_up = False

    def _on_policy_change(self) -> None:
        if not self._is_notifying:
            self._is_notifying = True
            self._run(self._notify_all())

    async def _notify_all(self) -> None:
        """Notify the servers that are allowed now, a few at a time."""
        try:
            while allowed := [server for server in self._refused if self._policy.allows(server)]:
                for server in allowed:
                    del self._refused[server]
                await map_concurrently(self._notify, allowed, MAX_CONCURRENT)
        finally:
            self._is_notifying = False

    async def _notify(self, server: ServerName) -> None:
        now_ms = int(self._clock.seconds() * 1000)
        try:
            await self._transactions.send(
                server, FederationTransaction(f"greeting.{now_ms}", now_ms, (), ())
            )
        except (RemoteError, MatrixError) as error:
            self._log.info(
                "{server} is allowed again, but cannot be notified: {error}",
                server=server,
                error=error,
            )
        await deferLater(self._clock, PAUSE)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(self._log_failure)

    def _log_failure(self, failure: Failure) -> None:
        self._log.failure("servers that are allowed again could not be notified", failure)
