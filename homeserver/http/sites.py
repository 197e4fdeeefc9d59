"""Makes a site, which is a protocol factory, for each configured listener, and listens."""

from collections.abc import Callable, Sequence

from twisted.internet.defer import gatherResults, maybeDeferred
from twisted.internet.interfaces import (
    IListeningPort,
    IReactorSSL,
    IReactorTCP,
    IReactorTime,
    IReactorUNIX,
)
from twisted.logger import Logger

from federation.protocol.errors import MatrixError
from homeserver.config.configuration import Config
from homeserver.config.server import ListenerOptions
from homeserver.http.body_budget import BodyBudget
from homeserver.http.listeners import (
    TcpListener,
    TlsContext,
    UnixListener,
    format_address,
    listen_tcp,
    listen_unix,
)
from homeserver.http.responses import Response
from homeserver.http.router import Router
from homeserver.http.site import Site
from homeserver.http.site_options import SiteOptions
from homeserver.observe.access_log import AccessLog
from homeserver.observe.context import make_request_ids
from homeserver.observe.metrics import HttpMetrics
from storage.media.spool import Spool

ALWAYS_SERVED = frozenset({"client", "health"})


class Sites:
    """Makes the site of a listener. All sites share the router, the metrics and the memory budget
    for bodies."""

    def __init__(
        self,
        *,
        config: Config,
        clock: IReactorTime,
        router: Router,
        metrics: HttpMetrics,
        access_log: AccessLog,
        spool: Callable[[int], Spool],
        error_page: Callable[[MatrixError, str], Response],
    ) -> None:
        self._config = config
        self._clock = clock
        self._router = router
        self._metrics = metrics
        self._access_log = access_log
        self._spool = spool
        self._error_page = error_page
        self._request_ids = make_request_ids()
        self._bodies = BodyBudget(clock=clock)

    def make(self, listener: ListenerOptions) -> Site:
        """Return the site of one listener."""
        names = frozenset(name for resource in listener.resources for name in resource.names)
        if "federation" in names:
            # other servers need the keys to check our signatures; integrations use OpenID where
            # they use federation
            names |= {"keys", "openid"}
        if not self._config.federation.federation.enabled:
            names -= {"federation", "keys"}
        resources = (
            frozenset({"metrics", "health"})
            if listener.type == "metrics"
            else names | ALWAYS_SERVED
        )
        if not self._config.monitoring.enable_metrics:
            resources -= {"metrics"}
        return Site(
            router=self._router,
            clock=self._clock,
            metrics=self._metrics,
            access_log=self._access_log,
            next_request_id=self._request_ids.__next__,
            body_budget=self._bodies,
            options=SiteOptions(
                resources=resources,
                x_forwarded=listener.x_forwarded,
                request_id_header=listener.request_id_header,
                compress=any(resource.compress for resource in listener.resources),
                spool=self._spool,
                error_page=self._error_page,
            ),
        )


class Listeners:
    """Listens on all ports and sockets of the configuration."""

    log = Logger()

    def __init__(self, *, config: Config, sites: Sites) -> None:
        self._network = config.network
        self._sites = sites
        self._ports: list[IListeningPort] = []
        self._tls: list[TlsContext] = []

    def start(self, tcp: IReactorTCP, tls: IReactorSSL, unix: IReactorUNIX) -> None:
        """Start to listen. Raises `CannotListenError`, and for TLS `OSError`, `SSL.Error`."""
        for listener in self._network.listeners:
            if listener.type != "manhole":
                self._ports.extend(self._listen(listener, tcp, tls, unix))

    def log_addresses(self) -> None:
        """Write the addresses to the log, when requests can be answered."""
        for port in self._ports:
            self.log.info("listening on {address}", address=format_address(port))

    def reload_certificates(self) -> None:
        """Read the TLS certificates again. Raises `OSError`, `SSL.Error`."""
        for context in self._tls:
            context.reload()

    async def stop(self) -> None:
        """Accept no more connections. Those that are open end with the process."""
        ports, self._ports = self._ports, []
        await gatherResults(
            [maybeDeferred(port.stopListening) for port in ports], consumeErrors=True
        )

    def _listen(
        self, listener: ListenerOptions, tcp: IReactorTCP, tls: IReactorSSL, unix: IReactorUNIX
    ) -> Sequence[IListeningPort]:
        site = self._sites.make(listener)
        if listener.path is not None:
            return [listen_unix(unix, UnixListener(listener.path, listener.mode), site)]
        assert listener.port is not None  # the configuration was checked
        context = None
        if listener.tls:
            assert self._network.tls_certificate_path is not None
            assert self._network.tls_private_key_path is not None
            context = TlsContext(
                certificate=self._network.tls_certificate_path,
                private_key=self._network.tls_private_key_path,
            )
            self._tls.append(context)
        return listen_tcp(
            tcp, tls, TcpListener(listener.port, listener.bind_addresses, context), site
        )
