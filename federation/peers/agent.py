"""The wire to other servers as it is in production: finds a server, connects, and exchanges a
request with it.

Redirects are not followed. A route whose hosts do not answer is asked for again the next time.

spec: server-server-api#resolving-server-names
"""

from twisted.internet.interfaces import IReactorTime

from federation.http_client.connection import Connection, Received
from federation.http_client.connector import Dialler
from federation.http_client.errors import OutboundError, TooLong
from federation.http_client.pool import Pool
from federation.http_client.request import REPEATABLE, encode_request, within
from federation.http_client.tls import TlsTrust
from federation.peers.routes import Routes
from federation.peers.wire import WireAnswer, WireRequest
from federation.protocol.discovery import Route
from federation.protocol.errors import AnswerTooLong, RemoteError
from federation.protocol.ids import ServerName, is_server_name


class Agent:
    """A `Wire`."""

    def __init__(
        self, clock: IReactorTime, routes: Routes, dialler: Dialler, pool: Pool, trust: TlsTrust
    ) -> None:
        self._clock = clock
        self._routes = routes
        self._dialler = dialler
        self._pool = pool
        self._trust = trust

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireAnswer:
        """Raises RemoteError."""
        try:
            received = await within(
                self._clock, request.seconds, self._exchange(destination, request)
            )
        except TooLong as error:
            raise AnswerTooLong(destination, str(error)) from error
        except OutboundError as error:
            raise RemoteError(destination, str(error), retryable=error.retryable) from error
        return WireAnswer(received.status, received.headers, received.body)

    async def _exchange(self, destination: ServerName, request: WireRequest) -> Received:
        if not is_server_name(destination):  # identifiers in events may name such
            raise OutboundError("no server can have this name", retryable=False)
        route = await self._routes.find(destination)
        encoded = encode_request(
            request.method, request.uri, route.host_header, request.headers, request.body
        )

        async def dial() -> Connection:
            return await self._dial(destination, route)

        # Servers that lead to the same host share its connections: that host proved who it is
        key = ("matrix", route.host_header, route.tls_name)
        return await self._pool.exchange(
            key,
            dial,
            encoded,
            request.max_bytes,
            repeatable=request.method in REPEATABLE,
            take=request.take,
        )

    async def _dial(self, destination: ServerName, route: Route) -> Connection:
        failure = OutboundError("it says that it takes no part in federation", retryable=False)
        for hop in route.hops:
            try:
                return await self._dialler.dial(
                    hop.host, hop.port, self._trust.towards(route.tls_name)
                )
            except OutboundError as error:
                failure = error
        self._routes.doubt(destination)
        raise failure
