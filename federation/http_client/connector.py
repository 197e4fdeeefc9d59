"""Opens connections to hosts: directly or, for TLS, through a proxy if one is configured.

The allowed addresses of a host are tried, IPv6 and IPv4 alternately, until one accepts. Each
attempt begins a quarter of a second after the previous one, without waiting for its result
(RFC 8305). So broken IPv6 or an unreachable machine costs only this quarter of a second.
`AddressPolicy` checks the very address that the socket is opened to. A proxy has to check the
addresses of host names itself (`proxy.py`).
"""

from collections.abc import Sequence
from ipaddress import ip_address
from itertools import chain, zip_longest
from typing import cast

from twisted.internet.defer import CancelledError, FailureGroup, race
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTCP, IReactorTime
from twisted.internet.task import deferLater
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol

from federation.http_client.address_policy import AddressPolicy
from federation.http_client.connection import GuardedConnection, GuardFactory
from federation.http_client.errors import OutboundError
from federation.http_client.proxy import Proxy, Tunnel, TunnelFactory
from federation.http_client.resolver import NameNotFound, NameResolver
from federation.http_client.tls import TlsName

SECONDS_BETWEEN = 0.25
SECONDS_TO_CONNECT = 10.0
"""For one address."""


class Connector:
    """Opens guarded connections."""

    def __init__(
        self,
        *,
        tcp: IReactorTCP,
        clock: IReactorTime,
        names: NameResolver,
        addresses: AddressPolicy,
        proxy: Proxy | None = None,
    ) -> None:
        """`proxy`: for connections with TLS."""
        self._tcp = tcp
        self._clock = clock
        self._names = names
        self._addresses = addresses
        self._proxy = proxy

    async def connect(
        self, host: str, port: int, tls: TlsName | None, factory: IProtocolFactory
    ) -> IProtocol:
        """Connect a protocol of the factory, once the other side is checked. Its transport is a
        `GuardedConnection`.

        `host`: a name, or an address without brackets. Raises OutboundError. Has no time limit:
        the caller sets one.
        """
        guards: IProtocolFactory = GuardFactory(wrapped=factory, tls=tls)
        if tls is not None:
            guards = TLSMemoryBIOFactory(tls, True, guards, self._clock)
            guards.noisy = False
        if tls is not None and self._proxy is not None and self._proxy.is_used_for(host):
            connected = await self._connect_through(self._proxy, host, port, guards)
        else:
            addresses = self._allowed([host] if _is_address(host) else await self._look_up(host))
            connected = await self._connect_first(addresses, port, guards)
        guard = connected if tls is None else cast(TLSMemoryBIOProtocol, connected).wrappedProtocol
        return await cast(GuardedConnection, guard).ready

    async def _connect_through(
        self, proxy: Proxy, host: str, port: int, factory: IProtocolFactory
    ) -> IProtocol:
        if _is_address(host):
            self._allowed([host])
        addresses = [proxy.host] if _is_address(proxy.host) else await self._look_up(proxy.host)
        tunnel = await self._connect_first(
            addresses, proxy.port, TunnelFactory(proxy=proxy, host=host, port=port, inner=factory)
        )
        return await cast(Tunnel, tunnel).ready

    async def _connect_first(
        self, addresses: Sequence[str], port: int, factory: IProtocolFactory
    ) -> IProtocol:
        if not addresses:
            raise OutboundError("it has no address")
        ordered = _interleave(addresses)
        attempts = []
        for number, address in enumerate(ordered):
            kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
            endpoint = kind(self._tcp, address, port, timeout=SECONDS_TO_CONNECT)
            attempts.append(
                deferLater(self._clock, number * SECONDS_BETWEEN, endpoint.connect, factory)
            )
        try:
            _, connected = await race(attempts)
        except FailureGroup as group:
            failures = group.failures
            if any(each.check(CancelledError, ConnectingCancelledError) for each in failures):
                raise CancelledError from group
            text = failures[-1].getErrorMessage()
            raise OutboundError(f"no connection to {ordered[-1]} port {port}: {text}") from group
        return cast(IProtocol, connected)

    def _allowed(self, addresses: Sequence[str]) -> list[str]:
        allowed = [each for each in addresses if self._addresses.allows(each)]
        if not allowed:
            raise OutboundError(
                "its address is one that this server does not contact", retryable=False
            )
        return allowed

    async def _look_up(self, host: str) -> Sequence[str]:
        try:
            return await self._names.lookup_addresses(host)
        except NameNotFound as error:
            raise OutboundError(str(error)) from error


def _interleave(addresses: Sequence[str]) -> list[str]:
    """Return the addresses of both families in turn, beginning with the family of the first."""
    first = [each for each in addresses if (":" in each) == (":" in addresses[0])]
    second = [each for each in addresses if each not in first]
    return [each for each in chain.from_iterable(zip_longest(first, second)) if each is not None]


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
