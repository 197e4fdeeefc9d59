"""Wires the HTTP clients: for other servers, and for all other services."""

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
from federation.http_client.resolver import NameResolver, SystemNameResolver
from federation.http_client.tls import TlsTrust
from federation.peers.agent import FederationAgent, HttpWire
from federation.peers.routes import Routes
from homeserver.config.configuration import Config
from homeserver.config.outgoing import FederationOptions
from storage.engine.executors import Executor

MAX_DOCUMENT_BYTES = 8 << 20


class HttpClientParts:
    """The HTTP clients. `wire` sends requests to other servers, `client` to services that are not
    Matrix servers, such as push gateways. `previews` fetches linked pages."""

    def __init__(
        self,
        *,
        config: Config,
        reactor: ReactorBase,
        threads: Executor,
        draw: Callable[[], float],
        environment: Mapping[str, str],
        names: NameResolver | None = None,
    ) -> None:
        """`threads` look up addresses. `draw` returns random numbers in [0, 1). `names` replaces
        the system's resolver.

        Raises BadAuthorities, BadProxy (of the environment; that of the configuration was checked).
        """
        federation = config.federation
        self._reactor = reactor
        self._threads = threads
        self._clock = cast(IReactorTime, reactor)
        self._names = (
            names if names is not None else SystemNameResolver(reactor=reactor, threads=threads)
        )
        self._pool = ConnectionPool(self._clock)
        self._system_trust = TlsTrust()
        trust = TlsTrust(
            authorities=federation.federation_custom_ca_list or None,
            verify=federation.federation_verify_certificates,
        )
        addresses = AddressPolicy(
            denied=federation.ip_range_blacklist, allowed=federation.ip_range_whitelist
        )
        self._proxy = choose_proxy(federation, environment)
        connector = self._connector(addresses)
        self._peers = HttpClient(
            clock=self._clock, agent=WebAgent(pool=self._pool, connector=connector, trust=trust)
        )
        routes = Routes(clock=self._clock, web=self._peers, names=self._names, draw=draw)
        self.wire = HttpWire(
            clock=self._clock,
            agent=FederationAgent(routes=routes, connector=connector, pool=self._pool, trust=trust),
        )
        self.client = HttpClient(
            clock=self._clock,
            agent=WebAgent(pool=self._pool, connector=connector, trust=self._system_trust),
        )
        previews = config.previews
        self.previews = self.client_for(
            previews.url_preview_ip_range_blacklist, previews.url_preview_ip_range_whitelist
        )

    async def fetch(self, url: str) -> bytes:
        """Fetch a document of the federation; its certificate is checked like those of other
        servers. Raises OutboundError."""
        response = await self._peers.request(
            "GET", url, seconds=60, max_bytes=MAX_DOCUMENT_BYTES, redirects=5
        )
        if response.status != HTTPStatus.OK:
            raise OutboundError(f"it responds with {response.status}")
        return response.body

    async def follow(self, url: str, take: TakeBody, seconds: float, max_bytes: int) -> int:
        """Follow a URL that another server named: pass the body to `take`, and return the status.
        Raises OutboundError."""
        response = await self._peers.request(
            "GET",
            url,
            seconds=seconds,
            max_bytes=max_bytes,
            redirects=5,
            only_https=True,
            take=take,
        )
        return response.status

    def client_for(self, denied: Iterable[str], allowed: Iterable[str]) -> HttpClient:
        """Return a client with an address policy of its own, for example for URL previews."""
        connector = self._connector(AddressPolicy(denied=denied, allowed=allowed))
        return HttpClient(
            clock=self._clock,
            agent=WebAgent(pool=self._pool, connector=connector, trust=self._system_trust),
        )

    def close(self) -> Deferred[None]:
        """Close idle connections, and stop looking up names."""
        self._pool.close()
        return self._threads.close()

    def _connector(self, addresses: AddressPolicy) -> Connector:
        return Connector(
            tcp=cast(IReactorTCP, self._reactor),
            clock=self._clock,
            names=self._names,
            addresses=addresses,
            proxy=self._proxy,
        )


def choose_proxy(federation: FederationOptions, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy of the configuration, else that of the environment; None if there is none.
    Raises BadProxy."""
    url = federation.https_proxy or environment.get("https_proxy") or environment.get("HTTPS_PROXY")
    exceptions = federation.no_proxy_hosts
    if exceptions is None:
        exceptions = tuple(
            (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(",")
        )
    return read_proxy(url, exceptions) if url else None
