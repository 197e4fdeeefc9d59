"""Requests through a proxy, a small real one on loopback."""

from collections.abc import Iterator
from typing import cast

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IAddress, IReactorTCP, ITCPTransport
from twisted.internet.protocol import Protocol, ServerFactory

from federation.http_client.proxy import BadProxy, Proxy, read_proxy
from federation.peers.wire import WireRequest
from federation.protocol.errors import RemoteError
from federation.protocol.ids import ServerName
from tests.conftest import run_coroutine
from tests.helpers.loopback_servers import LoopbackServers, ok

pytestmark = pytest.mark.reactor(60)

GET = WireRequest("GET", "/_matrix/x", seconds=30)


class ProxyToHost(Protocol):
    """The proxy's way to the host."""

    def __init__(self, near: "ProxyToClient") -> None:
        self._near = near

    def dataReceived(self, data: bytes) -> None:
        self._near.write(data)


class ProxyToClient(Protocol):
    """The proxy's connection to its client."""

    def __init__(self, office: "LoopbackProxy") -> None:
        self._office = office
        self._came = b""
        self._far: ProxyToHost | None = None

    def write(self, data: bytes) -> None:
        cast(ITCPTransport, self.transport).write(data)

    def dataReceived(self, data: bytes) -> None:
        if self._far is not None:
            cast(ITCPTransport, self._far.transport).write(data)
            return
        self._came += data
        if b"\r\n\r\n" in self._came:
            self._office.asked.append(self._came)
            if self._office.answer is not None:
                self.write(self._office.answer)
            else:
                Deferred.fromCoroutine(self._connect()).addErrback(lambda _: None)

    async def _connect(self) -> None:
        port = int(self._came.split(b" ")[1].rpartition(b":")[2])
        endpoint = TCP4ClientEndpoint(cast(IReactorTCP, installed_reactor), "127.0.0.1", port)
        self._far = await connectProtocol(endpoint, ProxyToHost(self))
        self.write(b"HTTP/1.1 200 Connection established\r\nVia: office\r\n\r\n")


class LoopbackProxy(ServerFactory):
    """A proxy."""

    noisy = False

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answer: bytes | None = None
        self.near: list[ProxyToClient] = []
        self._port = cast(IReactorTCP, installed_reactor).listenTCP(0, self, interface="127.0.0.1")
        self.port = cast(IPv4Address, self._port.getHost()).port

    def buildProtocol(self, addr: IAddress | None) -> ProxyToClient:
        assert addr is not None
        self.near.append(ProxyToClient(self))
        return self.near[-1]

    async def end(self) -> None:
        await maybeDeferred(self._port.stopListening)
        for each in self.near:
            if each.connected:
                cast(ITCPTransport, each.transport).abortConnection()


@pytest.fixture
def office() -> Iterator[LoopbackProxy]:
    office = LoopbackProxy()
    yield office
    run_coroutine(office.end(), 10)


async def test_the_proxy_resolves_names_and_the_certificate_is_the_servers(
    hosts: LoopbackServers, office: LoopbackProxy
) -> None:
    hosts.proxy = read_proxy(f"http://us%40er:p:w@127.0.0.1:{office.port}")
    port = hosts.listen(lambda _: ok(b"{}"), "south.example")
    wire, name = hosts.wire(), ServerName(f"south.example:{port}")
    assert (await wire.exchange(name, GET)).body == b"{}"
    assert (await wire.exchange(name, GET)).body == b"{}"
    assert office.asked == [
        f"CONNECT south.example:{port} HTTP/1.1\r\nHost: south.example:{port}\r\n"
        "Proxy-Authorization: Basic dXNAZXI6cDp3\r\n\r\n".encode()
    ]
    assert hosts.requests[0].startswith(b"GET /_matrix/x HTTP/1.1\r\n")
    assert f"\r\nHost: south.example:{port}\r\n".encode() in hosts.requests[0]


async def test_a_certificate_for_another_name_is_refused_through_a_proxy(
    hosts: LoopbackServers, office: LoopbackProxy
) -> None:
    hosts.proxy = Proxy("127.0.0.1", office.port)
    port = hosts.listen(lambda _: ok(b"{}"), "other.example")
    with pytest.raises(RemoteError, match="not for south"):
        await hosts.wire().exchange(ServerName(f"south.example:{port}"), GET)
    assert hosts.requests == []


async def test_a_denied_address_is_not_requested_from_the_proxy(
    hosts: LoopbackServers, office: LoopbackProxy
) -> None:
    hosts.proxy = Proxy("127.0.0.1", office.port)
    with pytest.raises(RemoteError, match="does not contact"):
        await hosts.wire(allowed=()).exchange(ServerName("10.0.0.1:5"), GET)
    assert office.asked == []


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "407 Proxy"),
        (b"SSH-2.0\r\n\r\n", "the proxy says"),
        (b"x" * 20_000, "come to an end"),
        (b"HTTP/1.1 200 OK\r\n\r\nno TLS at all", "no safe connection"),
    ],
)
async def test_errors_of_a_proxy_are_reported(
    hosts: LoopbackServers, office: LoopbackProxy, answer: bytes, text: str
) -> None:
    hosts.proxy = Proxy("127.0.0.1", office.port)
    office.answer = answer
    with pytest.raises(RemoteError, match=text):
        await hosts.wire().exchange(ServerName("south.example:5"), GET)


async def test_a_silent_proxy_times_out(hosts: LoopbackServers, office: LoopbackProxy) -> None:
    hosts.proxy = Proxy("127.0.0.1", office.port)
    office.answer = b""
    with pytest.raises(RemoteError, match=r"within 0\.2 seconds"):
        await hosts.wire().exchange(
            ServerName("south.example:5"), WireRequest("GET", "/_matrix/x", seconds=0.2)
        )


async def test_exceptions_are_contacted_directly(
    hosts: LoopbackServers, office: LoopbackProxy
) -> None:
    hosts.proxy = Proxy("127.0.0.1", office.port, exceptions=("south.example",))
    port = hosts.listen(lambda _: ok(b"{}"), "south.example")
    hosts.names.addresses["south.example"] = ["127.0.0.1"]
    assert (await hosts.wire().exchange(ServerName(f"south.example:{port}"), GET)).status == 200
    assert office.asked == []


@pytest.mark.parametrize(
    ("exceptions", "direct"),
    [
        (["*"], ["a.example", "1.2.3.4"]),
        (["example.org"], ["example.org", "A.Example.org"]),
        ([".example.org", " *.b.example "], ["a.example.org", "a.b.example"]),
        (["10.0.0.0/8", "::1", ""], ["10.1.2.3", "::1"]),
        ([], []),
    ],
)
def test_exceptions_match_hosts_domains_and_networks(
    exceptions: list[str], direct: list[str]
) -> None:
    proxy = Proxy("proxy", 1, exceptions=tuple(exceptions))
    assert not [host for host in direct if proxy.is_used_for(host)]
    assert all(
        proxy.is_used_for(host)
        for host in ("c.example", "xexample.net", "11.0.0.1", "::2")
        if "*" not in exceptions
    )


@pytest.mark.parametrize(
    "url", ["", "https://proxy", "socks5://proxy", "http://", "http://proxy:x", "http://proxy/a"]
)
def test_invalid_proxy_urls_are_refused(url: str) -> None:
    with pytest.raises(BadProxy):
        read_proxy(url)
