"""Opening connections: to the addresses of a name that may be contacted, and to the first of them
that answers.

Addresses of both families are tried in turn, the next one a moment after the last (RFC 8305), so
that a broken IPv6 or a dead machine costs a quarter of a second. Each is asked of the
`AddressPolicy`, and the socket is opened to that very address.
"""

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from itertools import chain, zip_longest

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTCP,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from federation.http_client.address_policy import AddressPolicy
from federation.http_client.connection import Connection
from federation.http_client.errors import OutboundError
from federation.http_client.proxy import Proxy, Tunnel
from federation.http_client.resolver import NameNotFound, Names
from federation.http_client.tls import TlsName

SECONDS_BETWEEN = 0.25
SECONDS_TO_CONNECT = 10.0
"""For one address."""


MakeAttempt = Callable[[], tuple[Connection, IProtocolFactory]]
"""Makes a connection, and the factory of what is connected."""


class Dialler:
    """Opens connections."""

    def __init__(
        self,
        tcp: IReactorTCP,
        clock: IReactorTime,
        names: Names,
        addresses: AddressPolicy,
        proxy: Proxy | None = None,
    ) -> None:
        """`proxy`: for what is spoken with TLS."""
        self._tcp = tcp
        self._clock = clock
        self._names = names
        self._addresses = addresses
        self._proxy = proxy

    async def dial(self, host: str, port: int, tls: TlsName | None) -> Connection:
        """A connection that may be used, its other side checked. `host`: a name, or an address
        without brackets.

        Raises OutboundError. Takes as long as it takes: whoever waits sets the time.
        """
        if tls is not None and self._proxy is not None and self._proxy.serves(host):
            return await self._dial_through(self._proxy, host, port, tls)
        addresses = self._allowed([host] if _is_address(host) else await self._look_up(host))
        return await self._race(addresses, port, lambda: _attempt(tls))

    async def _dial_through(self, proxy: Proxy, host: str, port: int, tls: TlsName) -> Connection:
        if _is_address(host):
            self._allowed([host])
        addresses = [proxy.host] if _is_address(proxy.host) else await self._look_up(proxy.host)
        return await self._race(
            addresses, proxy.port, lambda: _attempt_through(proxy, host, port, tls)
        )

    def _allowed(self, addresses: Sequence[str]) -> list[str]:
        allowed = [each for each in addresses if self._addresses.allows(each)]
        if not allowed:
            raise OutboundError(
                "its address is one that this server does not contact", retryable=False
            )
        return allowed

    async def _race(self, addresses: Sequence[str], port: int, make: MakeAttempt) -> Connection:
        connection = await _Race(self._tcp, self._clock, _interleave(addresses), port, make).run()
        return await connection.ready

    async def _look_up(self, host: str) -> Sequence[str]:
        try:
            return await self._names.lookup_addresses(host)
        except NameNotFound as error:
            raise OutboundError(str(error)) from error


class _Race:
    """Attempts at several addresses; the first that connects wins, and the others are given up."""

    def __init__(
        self,
        tcp: IReactorTCP,
        clock: IReactorTime,
        addresses: Sequence[str],
        port: int,
        make: MakeAttempt,
    ) -> None:
        self._tcp = tcp
        self._clock = clock
        self._left = list(addresses)
        self._port = port
        self._make = make
        self._attempts: list[Deferred[IProtocol]] = []
        self._done: Deferred[Connection] = Deferred()
        self._next: IDelayedCall | None = None
        self._failure: OutboundError | None = None

    async def run(self) -> Connection:
        self._try_next()
        try:
            return await self._done
        finally:
            self._stop()

    def _try_next(self) -> None:
        if self._next is not None and self._next.active():
            self._next.cancel()
        if not self._left:
            if not self._attempts and not self._done.called:
                self._done.errback(self._failure or OutboundError("it has no address"))
            return
        address = self._left.pop(0)
        if self._left:
            self._next = self._clock.callLater(SECONDS_BETWEEN, self._try_next)
        kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
        connection, factory = self._make()
        attempt = kind(self._tcp, address, self._port, timeout=SECONDS_TO_CONNECT).connect(factory)
        self._attempts.append(attempt)
        attempt.addCallbacks(
            lambda _: self._win(attempt, connection),
            lambda failure: self._lose(attempt, address, failure),
        )

    def _win(self, attempt: Deferred[IProtocol], connection: Connection) -> None:
        self._attempts.remove(attempt)
        if self._done.called:
            connection.abort()
        else:
            self._done.callback(connection)

    def _lose(self, attempt: Deferred[IProtocol], address: str, failure: Failure) -> None:
        self._attempts.remove(attempt)
        self._failure = OutboundError(
            f"no connection to {address} port {self._port}: {failure.getErrorMessage()}"
        )
        if not self._done.called:
            self._try_next()

    def _stop(self) -> None:
        self._left.clear()
        if self._next is not None and self._next.active():
            self._next.cancel()
        for attempt in list(self._attempts):
            attempt.cancel()


class _One(Factory):
    """Builds the protocol that it was made for."""

    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._protocol


def _attempt(tls: TlsName | None) -> tuple[Connection, IProtocolFactory]:
    connection = Connection(tls)
    return connection, _One(connection) if tls is None else _within(connection, tls)


def _attempt_through(
    proxy: Proxy, host: str, port: int, tls: TlsName
) -> tuple[Connection, IProtocolFactory]:
    connection = Connection(tls)
    return connection, _One(Tunnel(proxy, host, port, connection, _within(connection, tls)))


def _within(connection: Connection, tls: TlsName) -> TLSMemoryBIOFactory:
    factory = TLSMemoryBIOFactory(tls, True, _One(connection))
    factory.noisy = False
    return factory


def _interleave(addresses: Sequence[str]) -> list[str]:
    """The families by turns, beginning with that of the first."""
    first = [each for each in addresses if (":" in each) == (":" in addresses[0])]
    second = [each for each in addresses if each not in first]
    return [each for each in chain.from_iterable(zip_longest(first, second)) if each is not None]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
