"""A server that the policy has refused, and lets in again, hears of it: by an empty transaction, as a sign that we are there.

To that server we looked like one that cannot be reached: it keeps back what it has for us, and tries again after a pause of an hour
or more, or once it hears from us. What we have to tell it ourselves would do, but there may be nothing (`deliveries.py`). Where
the greeting does not arrive, its own next try is soon enough.
"""

from collections.abc import Callable, Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.policy import Policy
from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.ids import ServerName
from federation.remote.transactions import Transaction, Transactions
from federation.rooms.concurrent import map_at_once

AT_ONCE: Final = 10


class Greetings:
    """Sends them when the policy changes. Each node does, to whom it has refused. For the reactor thread."""

    _log = Logger()

    def __init__(self, policy: Policy, transactions: Transactions, now_ms: Callable[[], int]) -> None:
        self._policy = policy
        self._transactions = transactions
        self._now_ms = now_ms
        policy.subscribe(self._heed_policy)

    def _heed_policy(self) -> None:
        servers = self._policy.take_let_in()
        if servers:
            Deferred.fromCoroutine(self._greet(servers)).addErrback(
                lambda failure: self._log.failure("servers that are let in again could not be told", failure)
            )

    async def _greet(self, servers: Sequence[ServerName]) -> None:
        async def greet(server: ServerName) -> None:
            now_ms = self._now_ms()
            try:
                await self._transactions.send(server, Transaction(f"greeting.{now_ms}", now_ms, (), ()))
            except (RemoteError, MatrixError) as error:
                self._log.info("{server} is let in again and does not hear of it: {error}", server=server, error=error)

        await map_at_once(greet, servers, AT_ONCE)
