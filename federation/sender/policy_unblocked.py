"""A server that the policy has refused, and lets in again, hears of it: by an empty transaction, as
a sign that we are there.

To that server we looked like one that cannot be reached: it keeps back what it has for us, and
tries again after a pause of an hour or more, or once it hears from us. What we have to tell it
ourselves would do, but there may be nothing (`deliveries.py`). Where the greeting does not arrive,
its own next try is soon enough.

Who asks and is refused is not asked to prove its name. So a name is remembered only if it is one of
a server that shares a room with us: names that somebody made up take nobody's place, and nothing is
ever sent to them.
"""

from collections.abc import Coroutine
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.peers.policy import Policy
from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.ids import ServerName
from federation.remote.transactions import Transaction, Transactions
from federation.rooms.concurrent import map_at_once
from storage.rooms.room_servers import RoomServerStore

AT_ONCE: Final = 10
PAUSE: Final = 1.0
"""Seconds after a greeting, before another is sent in its place."""
MAX_NAMES: Final = 500
"""That are looked up together; what is more meanwhile is forgotten."""
MAX_TURNED_AWAY: Final = 10_000
"""Servers to greet that are remembered: with more of them in our rooms, some wait for their own
next try."""


class Greetings:
    """Sends them when the policy changes. Each node does, to whom it has refused. For the reactor
    thread."""

    _log = Logger()

    def __init__(
        self,
        policy: Policy,
        store: RoomServerStore,
        transactions: Transactions,
        clock: IReactorTime,
    ) -> None:
        self._policy = policy
        self._store = store
        self._transactions = transactions
        self._clock = clock
        self._names: set[ServerName] = set()
        """That were said by who was refused."""
        self._is_looking = False
        self._turned_away: dict[ServerName, None] = {}
        """Servers in our rooms among them."""
        self._is_greeting = False
        policy.watch_turned_away(self._note)
        policy.subscribe(self._heed_policy)

    def _note(self, server: ServerName) -> None:
        if server in self._turned_away or len(self._names) >= MAX_NAMES:
            return
        self._names.add(server)
        if not self._is_looking:
            self._is_looking = True
            self._run(self._look())

    async def _look(self) -> None:
        """Find out which of the names are of servers in our rooms, as long as there are new
        ones."""
        try:
            while self._names:
                names, self._names = self._names, set()
                found = [ServerName(server) for server in await self._store.get_sharing(names)]
                self._turned_away |= dict.fromkeys(
                    found[: MAX_TURNED_AWAY - len(self._turned_away)]
                )
                if any(map(self._policy.allows, found)):  # it has changed meanwhile
                    self._heed_policy()
        finally:
            self._is_looking = False

    def _heed_policy(self) -> None:
        if not self._is_greeting:
            self._is_greeting = True
            self._run(self._greet_all())

    async def _greet_all(self) -> None:
        """Greet those that are let in, a few at a time."""
        try:
            while let_in := [server for server in self._turned_away if self._policy.allows(server)]:
                for server in let_in:
                    del self._turned_away[server]
                await map_at_once(self._greet, let_in, AT_ONCE)
        finally:
            self._is_greeting = False

    async def _greet(self, server: ServerName) -> None:
        now_ms = int(self._clock.seconds() * 1000)
        try:
            await self._transactions.send(server, Transaction(f"greeting.{now_ms}", now_ms, (), ()))
        except (RemoteError, MatrixError) as error:
            self._log.info(
                "{server} is let in again and does not hear of it: {error}",
                server=server,
                error=error,
            )
        await deferLater(self._clock, PAUSE)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(self._tell)

    def _tell(self, failure: Failure) -> None:
        self._log.failure("servers that are let in again could not be told", failure)
