"""Puts together the ways out: to other servers, and to whatever else may be asked over HTTP."""

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTCP, IReactorTime

from federation.http_client.address_policy import AddressPolicy
from federation.http_client.agent import ConnectionPool, WebAgent
from federation.http_client.body import TakeBody
from federation.http_client.client import HttpClient
from federation.http_client.connector import Connector
from federation.http_client.errors import OutboundError
from federation.http_client.proxy import Proxy, read_proxy
from federation.http_client.resolver import Names, SystemNames
from federation.http_client.tls import TlsTrust
from federation.peers.agent import FederationAgent, HttpWire
from federation.peers.routes import Routes
from homeserver.config.configuration import Config
from homeserver.config.outgoing import Federation
from storage.engine.executors import Executor

MAX_DOCUMENT_BYTES = 8 << 20


class OutboundParts:
    """The ways out. `wire` leads to other servers, `client` to what is no Matrix server, such as
    push gateways, `previews` to linked pages."""

    def __init__(
        self,
        config: Config,
        reactor: ReactorBase,
        threads: Executor,
        draw: Callable[[], float],
        environment: Mapping[str, str],
        names: Names | None = None,
    ) -> None:
        """`threads` look up addresses; `draw` gives numbers in [0, 1) by chance; `names`: others
        than the system's.

        Raises BadAuthorities, BadProxy (of the environment; that of the configuration was checked).
        """
        federation = config.federation
        self._reactor = reactor
        self._threads = threads
        self._clock = cast(IReactorTime, reactor)
        self._names = names if names is not None else SystemNames(reactor, threads)
        self._pool = ConnectionPool(self._clock)
        self._system_trust = TlsTrust()
        trust = TlsTrust(
            federation.federation_custom_ca_list or None,
            verify=federation.federation_verify_certificates,
        )
        addresses = AddressPolicy(federation.ip_range_blacklist, federation.ip_range_whitelist)
        self._proxy = proxy_of(federation, environment)
        connector = self._connector(addresses)
        self._peers = HttpClient(self._clock, WebAgent(self._pool, connector, trust))
        routes = Routes(self._clock, self._peers, self._names, draw)
        self.wire = HttpWire(self._clock, FederationAgent(routes, connector, self._pool, trust))
        self.client = HttpClient(self._clock, WebAgent(self._pool, connector, self._system_trust))
        previews = config.previews
        self.previews = self.client_for(
            previews.url_preview_ip_range_blacklist, previews.url_preview_ip_range_whitelist
        )

    async def fetch(self, url: str) -> bytes:
        """What is at an address of the federation, which has the authorities of its servers. Raises
        OutboundError."""
        answer = await self._peers.request(
            "GET", url, seconds=60, max_bytes=MAX_DOCUMENT_BYTES, redirects=5
        )
        if answer.status != HTTPStatus.OK:
            raise OutboundError(f"it answers {answer.status}")
        return answer.body

    async def follow(self, url: str, take: TakeBody, seconds: float, max_bytes: int) -> int:
        """Let `take` have what is at an address that another server names; the status. Raises
        OutboundError."""
        answer = await self._peers.request(
            "GET",
            url,
            seconds=seconds,
            max_bytes=max_bytes,
            redirects=5,
            only_https=True,
            take=take,
        )
        return answer.status

    def client_for(self, denied: Iterable[str], allowed: Iterable[str]) -> HttpClient:
        """A client with an address policy of its own, as previews of links have."""
        connector = self._connector(AddressPolicy(denied, allowed))
        return HttpClient(self._clock, WebAgent(self._pool, connector, self._system_trust))

    def close(self) -> Deferred[None]:
        """Close connections that nobody uses, and look up no more names."""
        self._pool.close()
        return self._threads.close()

    def _connector(self, addresses: AddressPolicy) -> Connector:
        return Connector(
            cast(IReactorTCP, self._reactor), self._clock, self._names, addresses, self._proxy
        )


def proxy_of(federation: Federation, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy of the configuration, else that of the environment. Raises BadProxy."""
    url = federation.https_proxy or environment.get("https_proxy") or environment.get("HTTPS_PROXY")
    exceptions = federation.no_proxy_hosts
    if exceptions is None:
        exceptions = tuple(
            (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(",")
        )
    return read_proxy(url, exceptions) if url else None
