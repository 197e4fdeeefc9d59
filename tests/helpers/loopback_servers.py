"""Servers on real loopback sockets that answer with bytes which the test chooses.

far = FarSide(tmp_path)
port = far.listen(lambda request: ok(b'{"server": {}}'), "south.example")
far.names.addresses["south.example"] = ["127.0.0.1"]
request = WireRequest("GET", "/_matrix/x")
answer = await far.wire().exchange(ServerName(f"south.example:{port}"), request)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from twisted.internet import reactor as installed_reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IReactorSSL,
    IReactorTCP,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, ServerFactory

from federation.http_client.address_policy import AddressPolicy
from federation.http_client.agent import ConnectionPool, WebAgent
from federation.http_client.client import HttpClient
from federation.http_client.connector import Connector
from federation.http_client.proxy import Proxy
from federation.http_client.resolver import NameNotFound, SrvRecords
from federation.http_client.tls import TlsName, TlsTrust
from federation.peers.agent import FederationAgent, HttpWire
from federation.peers.routes import Routes
from federation.protocol.discovery import Service
from homeserver.http.listeners import TlsContext
from tests.helpers.certificates import Authority

CLOCK = cast(IReactorTime, installed_reactor)
LOOPBACK = ("127.0.0.1", "::1")
PRIVATE = ("127.0.0.0/8", "::1/128", "10.0.0.0/8")

Answer = Callable[[bytes], bytes | None]
"""Maps a complete request to the bytes of the response. Empty: close the connection. None: send
nothing."""


def ok(body: bytes, *headers: str) -> bytes:
    """Return a response with status 200."""
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class FakeNames:
    """A DNS resolver with names of the test."""

    def __init__(self) -> None:
        self.addresses: dict[str, Sequence[str]] = {}
        self.services: dict[str, Sequence[Service]] = {}
        self.asked: list[str] = []

    async def lookup_addresses(self, host: str) -> Sequence[str]:
        if host not in self.addresses:
            raise NameNotFound(f"{host} has no address")
        return self.addresses[host]

    async def lookup_services(self, name: str) -> SrvRecords:
        self.asked.append(name)
        return SrvRecords(tuple(self.services.get(name, ())), 300)


class MovedConnector(Connector):
    """Connects to mapped ports, since a test cannot listen on port 443."""

    ports: dict[int, int]

    async def connect(
        self, host: str, port: int, tls: TlsName | None, factory: IProtocolFactory
    ) -> IProtocol:
        return await super().connect(host, self.ports.get(port, port), tls, factory)


class LoopbackConnection(Protocol):
    """A server's end of one connection."""

    def __init__(self, answer: Answer, requests: list[bytes]) -> None:
        self._answer = answer
        self._requests = requests
        self._came = b""
        self.last_words = b""
        """Bytes to write before the connection is closed."""

    def write(self, data: bytes) -> bool:
        """Write data; return whether the connection was still open."""
        if self.connected:
            cast(ITCPTransport, self.transport).write(data)
        return bool(self.connected)

    def end(self) -> None:
        """Close the connection at once."""
        if self.connected:
            cast(ITCPTransport, self.transport).abortConnection()

    def connectionLost(self, reason: object = None) -> None:
        self.connected = 0

    def dataReceived(self, data: bytes) -> None:
        self._came += data
        head, separator, rest = self._came.partition(b"\r\n\r\n")
        lengths = [
            line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        ]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        if not separator or len(rest) < length:
            return
        self._came = b""
        request = head + separator + rest
        self._requests.append(request)
        transport = cast(ITCPTransport, self.transport)
        answer = self._answer(request)
        if answer:
            transport.write(answer)
        elif answer is not None:
            transport.write(self.last_words)
            transport.loseConnection()


class LoopbackServers:
    """Loopback servers, and clients that reach them."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.names = FakeNames()
        self.requests: list[bytes] = []
        """All received requests, in order."""
        self.connections: list[LoopbackConnection] = []
        self.moved: dict[int, int] = {}
        """Maps the port that a client wants to the port that is dialled."""
        self.pool = ConnectionPool(CLOCK)
        self.proxy: Proxy | None = None
        self._ports: list[IListeningPort] = []

    def listen(
        self,
        answer: Answer,
        *names: str,
        address: str = "127.0.0.1",
        certificate: tuple[Path, Path] | None = None,
    ) -> int:
        """Listen with a certificate for these names, or without TLS if there are none. Return the
        port."""
        factory = _Speakers(answer, self)
        if names or certificate is not None:
            chain, key = certificate or self.authority.issue(*names)
            context = TlsContext(certificate=chain, private_key=key)
            port = cast(IReactorSSL, installed_reactor).listenSSL(
                0, factory, context, interface=address
            )
        else:
            port = cast(IReactorTCP, installed_reactor).listenTCP(0, factory, interface=address)
        self._ports.append(port)
        return cast(IPv4Address, port.getHost()).port

    def trust(self) -> TlsTrust:
        return TlsTrust(authorities=[self.authority.path])

    def connector(self, allowed: Sequence[str] = LOOPBACK) -> Connector:
        connector = MovedConnector(
            tcp=cast(IReactorTCP, installed_reactor),
            clock=CLOCK,
            names=self.names,
            addresses=AddressPolicy(denied=PRIVATE, allowed=allowed),
            proxy=self.proxy,
        )
        connector.ports = self.moved
        return connector

    def client(
        self, allowed: Sequence[str] = LOOPBACK, trust: TlsTrust | None = None
    ) -> HttpClient:
        return HttpClient(
            clock=CLOCK,
            agent=WebAgent(
                pool=self.pool, connector=self.connector(allowed), trust=trust or self.trust()
            ),
        )

    def wire(self, allowed: Sequence[str] = LOOPBACK, trust: TlsTrust | None = None) -> HttpWire:
        routes = Routes(clock=CLOCK, web=self.client(allowed), names=self.names, draw=lambda: 0.5)
        return HttpWire(
            clock=CLOCK,
            agent=FederationAgent(
                routes=routes,
                connector=self.connector(allowed),
                pool=self.pool,
                trust=trust or self.trust(),
            ),
        )

    async def end(self) -> None:
        """Close all listeners and connections."""
        self.pool.close()
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        for each in self.connections:
            each.end()


class _Speakers(ServerFactory):
    noisy = False

    def __init__(self, answer: Answer, hosts: LoopbackServers) -> None:
        self._answer = answer
        self._servers = hosts

    def buildProtocol(self, addr: IAddress | None) -> LoopbackConnection:
        speaker = LoopbackConnection(self._answer, self._servers.requests)
        self._servers.connections.append(speaker)
        return speaker
