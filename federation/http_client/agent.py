"""An `IAgent` on Twisted's HTTP client, with limits on concurrent requests and idle connections.

One `HTTPConnectionPool` of Twisted stores the connections to one host, and Twisted's `Agent` sends
requests on them. `ConnectionPool` in this module adds rules for which Twisted has no setting:

- Concurrent requests are limited, per host and in total. Idle connections are limited too. An
  unused host leaves no data in memory.
- If the server closed an idle connection just before a request, an idempotent request, such as GET
  or PUT, is sent again on another connection. A POST is never sent again, so it does not use a
  connection that has been idle for some seconds.
- A body of unknown length ends when the server closes the connection. It is complete only if the
  connection was closed cleanly.
"""

from collections.abc import Callable, Coroutine, Hashable
from contextlib import ExitStack
from functools import partial
from typing import Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.components import proxyForInterface
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from federation.http_client.connection import GuardedConnection
from federation.http_client.connector import Connector
from federation.http_client.errors import ConnectionGone, OutboundError
from federation.http_client.tls import TlsTrust

MAX_CONCURRENT_PER_HOST: Final = 8
"""Requests to one host at the same time."""
MAX_CONCURRENT: Final = 500
MAX_IDLE: Final = 300
MAX_IDLE_SECONDS: Final = 50
"""Shorter than what other servers and the proxies in front of them usually allow."""
MAX_IDLE_SECONDS_FOR_POST: Final = 3.0
"""How long a connection may have been idle for a request that is not idempotent."""
REPEATABLE: Final = frozenset({b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"})
"""Idempotent methods: RFC 9110, section 9.2.2."""


Connect = Callable[[IProtocolFactory], Coroutine[Deferred[Any], Any, IProtocol]]
"""Connects a protocol whose transport is a `GuardedConnection`. Raises OutboundError."""


class ConnectionPool:
    """Sends requests, and reuses connections for further requests to the same host."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._hosts: dict[Hashable, _Host] = {}
        self._requests = DeferredSemaphore(MAX_CONCURRENT)
        self._idle: dict[GuardedConnection, None] = {}
        """The connection that has been idle for longest is the first."""

    async def request(
        self,
        key: Hashable,
        connect: Connect,
        method: bytes,
        uri: bytes,
        headers: Headers | None,
        body: IBodyProducer | None,
    ) -> IResponse:
        """Send a request and wait for the head of the response. The caller has to read the body.

        Requests with the same key share connections. Raises OutboundError.
        """
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = _Host(clock=self._clock, key=key)
        with ExitStack() as used:
            host.users += 1
            used.callback(self._leave, host)
            await host.requests.acquire()
            used.callback(host.requests.release)
            await self._requests.acquire()
            used.callback(self._requests.release)
            response, connection = await self._send(host, connect, method, uri, headers, body)
            # Twisted would keep the connection of a server before HTTP/1.1, which closes it
            used.callback(self._end_request, connection, keep=response.version >= (b"HTTP", 1, 1))
            return cast(
                IResponse,
                _GuardedResponse(
                    response=response, connection=connection, end=used.pop_all().close
                ),
            )

    def close(self) -> None:
        """Close the idle connections."""
        for connection in list(self._idle):
            connection.loseConnection()

    def count_idle(self) -> int:
        """Return the number of idle connections."""
        return len(self._idle)

    def count_hosts(self) -> int:
        """Return the number of hosts with a request or a connection."""
        return len(self._hosts)

    async def _send(
        self,
        host: "_Host",
        connect: Connect,
        method: bytes,
        uri: bytes,
        headers: Headers | None,
        body: IBodyProducer | None,
    ) -> tuple[IResponse, GuardedConnection]:
        while True:
            attempt = _Attempt(
                clock=self._clock,
                connect=connect,
                is_repeatable=method in REPEATABLE,
                begin=partial(self._begin_request, host),
            )
            agent = Agent.usingEndpointFactory(self._clock, attempt, host)
            try:
                response = cast(IResponse, await agent.request(method, uri, headers, body))
            except (ResponseFailed, RequestTransmissionFailed) as error:
                if any(each.check(CancelledError) for each in error.reasons):
                    raise CancelledError from error
                reason = attempt.connection.explain(error)
                if isinstance(reason, ConnectionGone) and attempt.may_be_repeated:
                    continue
                raise reason from error
            attempt.connection.end_head()
            if response.version[0] != b"HTTP" or not 200 <= response.code <= 999:
                attempt.connection.loseConnection()
                raise OutboundError("its answer is no valid HTTP")
            return response, attempt.connection

    def _begin_request(self, host: "_Host", connection: GuardedConnection) -> None:
        self._idle.pop(connection, None)
        if connection.used_at is None:
            host.connections += 1
            connection.when_closed(partial(self._forget, host, connection))
        connection.begin_request()

    def _end_request(self, connection: GuardedConnection, *, keep: bool) -> None:
        connection.end_request(self._clock.seconds())
        if not keep:
            connection.loseConnection()
        if connection.is_open:
            self._idle[connection] = None
            if len(self._idle) > MAX_IDLE:
                next(iter(self._idle)).loseConnection()

    def _forget(self, host: "_Host", connection: GuardedConnection) -> None:
        self._idle.pop(connection, None)
        host.connections -= 1
        self._clean(host)

    def _leave(self, host: "_Host") -> None:
        host.users -= 1
        self._clean(host)

    def _clean(self, host: "_Host") -> None:
        if not host.users and not host.connections:
            del self._hosts[host.key]
            # this also cancels their timers
            host.closeCachedConnections()  # type: ignore[no-untyped-call]


class _Host(HTTPConnectionPool):
    """The connections to one host."""

    maxPersistentPerHost = MAX_CONCURRENT_PER_HOST
    cachedConnectionTimeout = MAX_IDLE_SECONDS
    retryAutomatically = False

    def __init__(self, *, clock: IReactorTime, key: Hashable) -> None:
        super().__init__(clock)  # type: ignore[no-untyped-call]
        self.key = key
        self.requests = DeferredSemaphore(MAX_CONCURRENT_PER_HOST)
        self.users = 0
        """The number of requests, with those that wait."""
        self.connections = 0
        """The number of open connections, in use or idle."""

    def getConnection(self, key: Hashable, endpoint: IStreamClientEndpoint) -> Deferred[Any]:
        """Return a connection that the `_Attempt` accepts."""
        return Deferred.fromCoroutine(self._get_connection(key, cast(_Attempt, endpoint)))

    async def _get_connection(self, key: Hashable, attempt: "_Attempt") -> Any:
        while True:
            client = await super().getConnection(key, attempt)
            connection = cast(GuardedConnection, client.transport)
            if attempt.accepts(connection):
                return client
            connection.loseConnection()


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Attempt:
    """The endpoint of one attempt at a request. Knows the connection that the attempt uses."""

    connection: GuardedConnection

    def __init__(
        self,
        *,
        clock: IReactorTime,
        connect: Connect,
        is_repeatable: bool,
        begin: Callable[[GuardedConnection], None],
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._is_repeatable = is_repeatable
        self._begin = begin
        self._was_idle = False

    @property
    def may_be_repeated(self) -> bool:
        """Whether it may have failed on a closed idle connection, and may be repeated."""
        return self._is_repeatable and self._was_idle

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return self

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    def accepts(self, connection: GuardedConnection) -> bool:
        """Use a connection, and return whether so.

        An idle connection is refused if it was closed. For a request that cannot be repeated it is
        also refused if it was idle for too long, as it may be closed soon.
        """
        idle_since = connection.used_at
        self._was_idle = idle_since is not None
        if idle_since is None and not connection.is_open:
            raise ConnectionGone("the connection was closed")
        is_stale = (
            idle_since is not None
            and self._clock.seconds() - idle_since > MAX_IDLE_SECONDS_FOR_POST
        )
        if not connection.is_open or (is_stale and not self._is_repeatable):
            return False
        self.connection = connection
        self._begin(connection)
        return True


class _GuardedResponse(proxyForInterface(IResponse)):  # type: ignore[misc]
    """A response whose body is read through `_Body`."""

    def __init__(
        self, *, response: IResponse, connection: GuardedConnection, end: Callable[[], None]
    ) -> None:
        super().__init__(response)
        self._connection = connection
        self._end = end
        # treq unpacks gzip without a bound. It leaves x-gzip, which means the same (RFC 9110,
        # section 8.4.1.3), to our own reader.
        values = b",".join(response.headers.getRawHeaders(b"Content-Encoding", ()))
        codings = [each.strip() for each in values.split(b",")]
        if b"gzip" in codings:
            renamed = b",".join(b"x-gzip" if each == b"gzip" else each for each in codings)
            response.headers.setRawHeaders(b"Content-Encoding", [renamed])

    def deliverBody(self, protocol: IProtocol) -> None:
        self.original.deliverBody(
            _Body(receiver=protocol, connection=self._connection, end=self._end)
        )


class _Body(Protocol):
    """Passes a body on, and translates the reason for which it ended."""

    def __init__(
        self, *, receiver: IProtocol, connection: GuardedConnection, end: Callable[[], None]
    ) -> None:
        self._receiver = receiver
        self._connection = connection
        self._end = end

    def connectionMade(self) -> None:
        self._receiver.makeConnection(cast(ITransport, self.transport))

    def dataReceived(self, data: bytes) -> None:
        self._receiver.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end()
        if reason.check(PotentialDataLoss) is not None:
            closed_by = self._connection.closed_by
            if closed_by is not None and closed_by.check(ConnectionDone) is not None:
                reason = Failure(ResponseDone())
            else:
                reason = Failure(OutboundError("the connection broke within the answer"))
        elif reason.check(ResponseDone) is None:
            reason = Failure(self._connection.explain(reason.value))
        self._receiver.connectionLost(reason)


@implementer(IAgent)
class WebAgent:
    """Sends requests to any web server that the connector may contact.

    `trust` checks the server's certificate.
    """

    def __init__(self, *, pool: ConnectionPool, connector: Connector, trust: TlsTrust) -> None:
        self._pool = pool
        self._connector = connector
        self._trust = trust

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,  # noqa: N803
    ) -> Deferred[IResponse]:
        parsed = URI.fromBytes(uri)
        host, port = parsed.host.decode("ascii").lower(), parsed.port

        async def connect(factory: IProtocolFactory) -> IProtocol:
            tls = self._trust.for_server(host) if parsed.scheme == b"https" else None
            return await self._connector.connect(host, port, tls, factory)

        # Another agent may have other permissions, so it shares no connection
        key = (self, parsed.scheme, host, port)
        return Deferred.fromCoroutine(
            self._pool.request(key, connect, method, uri, headers, bodyProducer)
        )
