"""Opens connections through an HTTP proxy, by CONNECT. They are used only for TLS, so the proxy
learns the host, but no content.

The proxy looks up host names, so it also has to check their addresses. `AddressPolicy` checks only
hosts that are given as an IP address.
"""

from base64 import b64encode
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Final, cast
from urllib.parse import unquote, urlsplit

import msgspec
from twisted.internet.address import HostnameAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from federation.http_client.errors import OutboundError

MAX_ANSWER_BYTES: Final = 16 << 10


class BadProxy(ValueError):
    """The address of a proxy is malformed."""


class Proxy(msgspec.Struct, frozen=True):
    """An HTTP proxy, and our credentials there."""

    host: str
    port: int
    authorization: str | None = None
    exceptions: tuple[str, ...] = ()
    """Hosts that are connected to directly: names with their subdomains, addresses, networks, or
    `*`."""

    def is_used_for(self, host: str) -> bool:
        """Return whether requests to a host go through the proxy.

        `host`: a name, or an address without brackets.
        """
        return not any(
            _is_covered(host.lower(), each.strip().lower())
            for each in self.exceptions
            if each.strip()
        )


def read_proxy(url: str, exceptions: Sequence[str] = ()) -> Proxy:
    """Read a proxy as in `http://user:password@proxy.example:3128`. Raises BadProxy."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadProxy("must be an address such as http://proxy.example:3128") from error
    if parts.scheme != "http" or not host or parts.path not in ("", "/"):
        raise BadProxy("must be an address such as http://proxy.example:3128")
    authorization = None
    if parts.username is not None:
        words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {b64encode(words.encode()).decode()}"
    return Proxy(host, port or 3128, authorization, tuple(exceptions))


class Tunnel(Protocol):
    """Asks the proxy for a connection to a host. `ready` fires with the connected protocol."""

    def __init__(self, *, proxy: Proxy, host: str, port: int, inner: IProtocolFactory) -> None:
        self.ready: Deferred[IProtocol] = Deferred(lambda _: self._abort())
        self._proxy = proxy
        self._host = host
        self._port = port
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._factory = inner
        self._inner: IProtocol | None = None
        self._received = b""

    def connectionMade(self) -> None:
        lines = [f"CONNECT {self._target} HTTP/1.1", f"Host: {self._target}"]
        if self._proxy.authorization is not None:
            lines.append(f"Proxy-Authorization: {self._proxy.authorization}")
        cast(ITCPTransport, self.transport).write("\r\n".join((*lines, "", "")).encode())

    def dataReceived(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            if len(self._received) > MAX_ANSWER_BYTES:
                self._refuse("the proxy does not come to an end")
            return
        words = head.split(b"\r\n")[0].split(b" ")
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or words[1] != b"200":
            self._refuse(f"the proxy says {b' '.join(words[1:])[:80].decode('latin-1')!a}")
            return
        inner = self._factory.buildProtocol(HostnameAddress(self._host.encode("ascii"), self._port))
        assert inner is not None
        self._inner = inner
        inner.makeConnection(cast(ITCPTransport, self.transport))
        self.ready.callback(inner)
        if rest:
            inner.dataReceived(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._inner is not None:
            self._inner.connectionLost(reason)
        elif not self.ready.called:
            self.ready.errback(OutboundError("the proxy closed the connection"))

    def _refuse(self, text: str) -> None:
        self._abort()
        if not self.ready.called:
            self.ready.errback(OutboundError(text))

    def _abort(self) -> None:
        cast(ITCPTransport, self.transport).abortConnection()


class TunnelFactory(Factory):
    """Makes tunnels to one host, in which protocols of another factory are connected."""

    noisy = False

    def __init__(self, *, proxy: Proxy, host: str, port: int, inner: IProtocolFactory) -> None:
        self._proxy = proxy
        self._host = host
        self._port = port
        self._inner = inner

    def buildProtocol(self, addr: IAddress | None) -> Tunnel:
        return Tunnel(proxy=self._proxy, host=self._host, port=self._port, inner=self._inner)


def _is_covered(host: str, exception: str) -> bool:
    if exception == "*":
        return True
    try:
        return ip_address(host) in ip_network(exception, strict=False)
    except ValueError:
        name = exception.lstrip("*.")
        return host == name or host.endswith("." + name)
