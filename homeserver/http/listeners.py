"""Listens on TCP, TLS and Unix sockets."""

from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT
from pathlib import Path
from typing import Final

import msgspec
from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLContextFactory,
    IReactorSSL,
    IReactorTCP,
    IReactorUNIX,
)
from twisted.internet.protocol import ServerFactory
from twisted.internet.ssl import CertificateOptions, TLSVersion
from zope.interface import implementer

BACKLOG: Final = 511
HTTP: Final = b"http/1.1"
"""The ALPN name of the protocol that we serve (RFC 7301)."""

_ADVICE: Final = {
    EADDRINUSE: "another program already listens there: stop it, "
    "or choose another `port` in `listeners`",
    EACCES: "this user may not listen there: choose a `port` from 1024 in `listeners`, "
    "and put a reverse proxy in front",
    EADDRNOTAVAIL: "this machine has no such address: see `bind_addresses` in `listeners`",
}


class TcpListener(msgspec.Struct, frozen=True):
    """A TCP port on some addresses, with TLS if there is a TLS context."""

    port: int
    bind_addresses: tuple[str, ...] = ("::", "0.0.0.0")
    tls: "TlsContext | None" = None


class UnixListener(msgspec.Struct, frozen=True):
    """A Unix socket with permission bits."""

    path: Path
    mode: int = 0o666


@implementer(IOpenSSLContextFactory)
class TlsContext:
    """Makes the TLS context of each connection. Reads the certificate again on `reload`."""

    def __init__(self, *, certificate: Path, private_key: Path) -> None:
        self._certificate = certificate
        self._private_key = private_key
        self._context = self._read()

    def reload(self) -> None:
        """Read the files again, for new connections. Raises `OSError`, `SSL.Error`; then the old
        certificate stays."""
        self._context = self._read()

    def getContext(self) -> SSL.Context:
        """Return the context of a connection, as Twisted asks for it."""
        return self._context

    def _read(self) -> SSL.Context:
        options = CertificateOptions(raiseMinimumTo=TLSVersion.TLSv1_2)
        context: SSL.Context = options.getContext()
        for path in (self._certificate, self._private_key):
            path.open("rb").close()  # OpenSSL's own error does not name the file
        context.use_certificate_chain_file(str(self._certificate))
        context.use_privatekey_file(str(self._private_key))
        context.check_privatekey()
        # Twisted's own ALPN callback needs the connection, but all connections share this context
        context.set_alpn_select_callback(
            lambda _, offered: HTTP if HTTP in offered else SSL.NO_OVERLAPPING_PROTOCOLS
        )
        return context


def listen_tcp(
    reactor: IReactorTCP, tls_reactor: IReactorSSL, listener: TcpListener, site: ServerFactory
) -> list[IListeningPort]:
    """Listen on every address of a TCP listener. Raises `CannotListenError`, except for `0.0.0.0`
    if `::` already covers it.

    Port 0 takes a free port on the first address, and the same one on the others.
    """
    ports: list[IListeningPort] = []
    number = listener.port
    for address in listener.bind_addresses:
        try:
            if listener.tls is None:
                port = reactor.listenTCP(number, site, BACKLOG, address)
            else:
                port = tls_reactor.listenSSL(number, site, listener.tls, BACKLOG, address)
        except CannotListenError as error:
            covered = address == "0.0.0.0" and "::" in listener.bind_addresses and bool(ports)
            absent = (
                address in ("::", "::1") and _lacks_ipv6(error) and len(listener.bind_addresses) > 1
            )
            if not (covered or absent):
                raise
            continue
        ports.append(port)
        number = number or int(getattr(port.getHost(), "port", 0))
    return ports


def listen_unix(
    reactor: IReactorUNIX, listener: UnixListener, site: ServerFactory
) -> IListeningPort:
    """Listen on a Unix socket, and replace one that a dead server left behind. Raises
    `CannotListenError`."""
    return reactor.listenUNIX(str(listener.path), site, BACKLOG, listener.mode, wantPID=True)


def format_address(port: IListeningPort) -> str:
    """Return the address of a port as people write it: `127.0.0.1:8008`, `[::1]:8008`, a path."""
    host = port.getHost()
    if isinstance(host, IPv6Address):
        return f"[{host.host}]:{host.port}"
    if isinstance(host, IPv4Address):
        return f"{host.host}:{host.port}"
    return str(host.name) if isinstance(host, UNIXAddress) else str(host)


def describe_listen_error(error: Exception) -> str:
    """Describe a failure to listen, with advice if the cause is known."""
    cause = error.socketError if isinstance(error, CannotListenError) else error
    advice = _ADVICE.get(cause.errno or 0) if isinstance(cause, OSError) else None
    return f"{str(error).rstrip('.')}; {advice}" if advice else str(error)


def _lacks_ipv6(error: CannotListenError) -> bool:
    cause = error.socketError
    return isinstance(cause, OSError) and cause.errno in (EAFNOSUPPORT, EADDRNOTAVAIL)
