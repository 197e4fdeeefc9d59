"""Sends requests to other servers over HTTPS: resolves the server name, connects, and sends.

`HttpWire` implements the interface `Wire` (`wire.py`). Tests use other implementations. `HttpWire`
does not follow redirects.

A server name resolves to one or more hosts. If none of them accepts a connection, the cached SRV
records are invalidated, and the cached well-known file expires within a minute (`routes.py`).

spec: server-server-api#resolving-server-names
"""

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime
from twisted.web.client import URI
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from federation.http_client.agent import ConnectionPool
from federation.http_client.client import HttpClient
from federation.http_client.connector import Connector
from federation.http_client.errors import OutboundError, ResponseTooLong
from federation.http_client.time_limit import within
from federation.http_client.tls import TlsTrust
from federation.peers.routes import Routes
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.discovery import Route
from federation.protocol.errors import AnswerTooLong, RemoteError
from federation.protocol.ids import ServerName, is_server_name


@implementer(IAgent)
class FederationAgent:
    """An `IAgent` for URLs whose host and port are the name of a Matrix server."""

    def __init__(
        self, *, routes: Routes, connector: Connector, pool: ConnectionPool, trust: TlsTrust
    ) -> None:
        self._routes = routes
        self._connector = connector
        self._pool = pool
        self._trust = trust

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,  # noqa: N803
    ) -> Deferred[IResponse]:
        return Deferred.fromCoroutine(
            self._request(method, uri, headers or Headers(), bodyProducer)
        )

    async def _request(
        self, method: bytes, uri: bytes, headers: Headers, body: IBodyProducer | None
    ) -> IResponse:
        destination = ServerName(URI.fromBytes(uri).netloc.decode("ascii"))
        route = await self._routes.find(destination)
        headers = headers.copy()
        headers.setRawHeaders("Host", [route.host_header])

        async def connect(factory: IProtocolFactory) -> IProtocol:
            return await self._connect(destination, route, factory)

        # Names that resolve to the same host share its connections: that host proved its identity
        key = ("matrix", route.host_header, route.tls_name)
        return await self._pool.request(key, connect, method, uri, headers, body)

    async def _connect(
        self, destination: ServerName, route: Route, factory: IProtocolFactory
    ) -> IProtocol:
        """Connect to the first host of a route that accepts a connection."""
        failure = OutboundError("the server states that it does not federate", retryable=False)
        for hop in route.hops:
            try:
                tls = self._trust.for_server(route.tls_name)
                return await self._connector.connect(hop.host, hop.port, tls, factory)
            except OutboundError as error:
                failure = error
        self._routes.invalidate(destination)
        raise failure


class HttpWire:
    """The `Wire` that sends requests over HTTPS."""

    def __init__(self, *, clock: IReactorTime, agent: FederationAgent) -> None:
        self._clock = clock
        self._client = HttpClient(clock=clock, agent=agent)

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireResponse:
        """Send a request and return the response. Raises RemoteError."""
        try:
            if not is_server_name(destination):  # identifiers in events may contain such names
                raise OutboundError("this is no valid server name", retryable=False)
            work = self._client.exchange(
                request.method,
                f"https://{destination}{request.uri}",
                request.headers,
                request.body,
                max_bytes=request.max_bytes,
                take=request.take,
            )
            answer = await within(self._clock, request.seconds, work)
        except ResponseTooLong as error:
            raise AnswerTooLong(destination, str(error)) from error
        except OutboundError as error:
            raise RemoteError(destination, str(error), retryable=error.retryable) from error
        return WireResponse(answer.status, answer.headers, answer.body)
