"""Builds a server, once, by plain construction in the order of the layers. No other module knows
all parts.

The clock, the random source and the threads for passwords are arguments, so a test builds the same
server with its own. Two servers can run in one process.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import (
    IListeningPort,
    IReactorFDSet,
    IReactorSSL,
    IReactorTCP,
    IReactorTime,
    IReactorUNIX,
)
from twisted.logger import Logger

from federation.http_client.client import Web
from federation.peers.identity import ServerIdentity
from federation.peers.member_lists import Fetch
from federation.peers.wire import Wire
from federation.protocol.ids import ServerName
from federation.protocol.signing import SigningKey
from federation.remote.directory import DirectoryRequests
from federation.remote.media import Follow
from federation.rooms.server_fallback import Candidates
from federation.rooms.serving.remote_spaces import RemoteHierarchies
from homeserver.api.endpoint import BodyLimit
from homeserver.cluster.jobs import Jobs
from homeserver.config.configuration import Config
from homeserver.config.server import ListenerOptions
from homeserver.http.body_budget import HeldBodies
from homeserver.http.guard import Guard
from homeserver.http.listeners import (
    TcpListener,
    TlsContext,
    UnixListener,
    format_address,
    listen_tcp,
    listen_unix,
)
from homeserver.http.rate_limits import RateLimiter
from homeserver.http.router import Router
from homeserver.http.site import Site, SiteOptions
from homeserver.observe.access import AccessLog
from homeserver.observe.caches import CacheMetrics, Entries
from homeserver.observe.context import make_request_ids
from homeserver.observe.metrics import HttpMetrics, JobMetrics
from homeserver.services.calls.rtc_transports import RTCTransports
from homeserver.services.discovery.client import ClientDiscovery
from homeserver.services.discovery.server import Discovery
from homeserver.services.login.passwords import Threads
from homeserver.services.previews.fetching import PreviewWeb
from homeserver.services.tokens.secret_tokens import RandomBytes
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.administration import administration_of_devices, administration_of_users
from homeserver.wiring.calls import CallParts
from homeserver.wiring.capabilities import offers_of
from homeserver.wiring.email import MailParts, MakeRelay, smtp_relay
from homeserver.wiring.encryption import EncryptionParts
from homeserver.wiring.endpoints import SOURCES
from homeserver.wiring.exploring import ExploringParts
from homeserver.wiring.federated_rooms import FederatedRoomParts
from homeserver.wiring.federation import FederationParts
from homeserver.wiring.federation_peers import edge_jobs, list_source_of, rules_of
from homeserver.wiring.federation_receiver import IncomingParts
from homeserver.wiring.federation_sender import FederationOutParts
from homeserver.wiring.jobs import jobs_of
from homeserver.wiring.limits import rates_of
from homeserver.wiring.media import MediaParts, MediaThreads
from homeserver.wiring.oauth import OAuthParts
from homeserver.wiring.pushers import PusherParts
from homeserver.wiring.retention import RetentionParts
from homeserver.wiring.rooms import RoomParts
from homeserver.wiring.search import SearchParts
from homeserver.wiring.upstream import UpstreamParts
from homeserver.wiring.user_data import PeopleParts, identity_server_of
from homeserver.wiring.web import WebParts
from storage.engine.database import Database, DatabaseUnavailable
from storage.engine.executors import Executor

ALWAYS_SERVED = frozenset({"client", "health"})


class Server:
    """A complete server, which can start and stop."""

    log = Logger()

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        database: Database,
        router: Router,
        accounts: AccountParts,
        rooms: RoomParts,
        people: PeopleParts,
        media: MediaParts,
        mail: MailParts,
        finding: SearchParts,
        retention: RetentionParts,
        calls: CallParts,
        federation: FederationParts,
        incoming: IncomingParts,
        federation_out: FederationOutParts,
        pushers: PusherParts,
        pages: WebParts,
        oauth: OAuthParts,
        metrics: HttpMetrics,
        access_log: AccessLog,
        jobs: Jobs,
    ) -> None:
        self.config = config
        self.clock = clock
        self.database = database
        self.router = router
        self.accounts = accounts
        self.rooms = rooms
        self.people = people
        self.media = media
        self.mail = mail
        self.finding = finding
        self.retention = retention
        self.calls = calls
        self.federation = federation
        self.incoming = incoming
        self.federation_out = federation_out
        self.pushers = pushers
        self.pages = pages
        self.oauth = oauth
        self._metrics = metrics
        self._access_log = access_log
        self._jobs = jobs
        self._request_ids = make_request_ids()
        self._bodies = HeldBodies(clock)
        self._ports: list[IListeningPort] = []
        self._tls: list[TlsContext] = []
        self.other_nodes = accounts.other_nodes

    def site(self, listener: ListenerOptions) -> Site:
        """Return the site of one listener."""
        names = frozenset(name for resource in listener.resources for name in resource.names)
        if "federation" in names:
            # other servers need the keys to check our signatures; integrations use OpenID where
            # they use federation
            names |= {"keys", "openid"}
        if not self.config.federation.federation.enabled:
            names -= {"federation", "keys"}
        resources = (
            frozenset({"metrics", "health"})
            if listener.type == "metrics"
            else names | ALWAYS_SERVED
        )
        if not self.config.observation.enable_metrics:
            resources -= {"metrics"}
        return Site(
            self.router,
            self.clock,
            metrics=self._metrics,
            access_log=self._access_log,
            next_request_id=self._request_ids.__next__,
            bodies=self._bodies,
            options=SiteOptions(
                resources=resources,
                x_forwarded=listener.x_forwarded,
                request_id_header=listener.request_id_header,
                compress=any(resource.compress for resource in listener.resources),
                spool=self.media.contents.spool,
                error_page=self.pages.error_pages.make,
            ),
        )

    def start(self, tcp: IReactorTCP, tls: IReactorSSL, unix: IReactorUNIX) -> None:
        """Start to listen, then start the background work. Raises `CannotListenError`, and for TLS
        `OSError`, `SSL.Error`."""
        self.media.sweep()
        for listener in self.config.network.listeners:
            if listener.type == "manhole":
                continue
            self._ports.extend(self._listen(listener, tcp, tls, unix))
        self._do(self.federation.edge.member_lists.start())
        self.accounts.last_seen.start()
        self.rooms.start()
        self.people.resume()
        self.mail.start()
        self.calls.delayed_events.start()
        self.incoming.inbox.start()
        self.incoming.completions.start()
        self.federation.unproved.start()
        self.start_jobs()
        self.federation_out.sender.start()
        self.pushers.start()
        if self.other_nodes is not None:
            self.other_nodes.start(IReactorFDSet(tcp, None))
        for port in self._ports:
            self.log.info("listening on {address}", address=format_address(port))

    def start_jobs(self) -> None:
        """Start the background jobs."""
        self._jobs.start()

    def _listen(
        self, listener: ListenerOptions, tcp: IReactorTCP, tls: IReactorSSL, unix: IReactorUNIX
    ) -> Sequence[IListeningPort]:
        site = self.site(listener)
        if listener.path is not None:
            return [listen_unix(unix, UnixListener(listener.path, listener.mode), site)]
        assert listener.port is not None  # the configuration was checked
        context = None
        network = self.config.network
        if listener.tls:
            assert network.tls_certificate_path is not None
            assert network.tls_private_key_path is not None
            context = TlsContext(network.tls_certificate_path, network.tls_private_key_path)
            self._tls.append(context)
        return listen_tcp(
            tcp, tls, TcpListener(listener.port, listener.bind_addresses, context), site
        )

    def reload(self, config: Config) -> None:
        """Apply the options that can change without a restart: the federation policy and
        certificates.

        Raises `OSError`, `ValueError`, `SSL.Error` if a certificate cannot be read; the old one
        stays then.
        """
        source = list_source_of(config.federation)
        self.federation.policy.change(rules_of(config.federation))
        self._do(self.federation.edge.member_lists.change(source))
        for context in self._tls:
            context.reload()

    def _do(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(
            lambda failure: self.log.failure("the federation member list was not read", failure)
        )

    async def stop(self) -> None:
        """Stop listening, write pending data, and close the database. Connections end with the
        process."""
        self.log.info("stopping")
        ports, self._ports = self._ports, []
        await gatherResults(
            [maybeDeferred(port.stopListening) for port in ports], consumeErrors=True
        )
        if self.other_nodes is not None:
            self.other_nodes.stop()
        self.incoming.completions.stop()
        self.federation.unproved.stop()
        self.incoming.inbox.stop()
        self.rooms.elsewhere.leaving.stop()
        self.rooms.elsewhere.planned_invites.stop()
        doing = (self._jobs, self.calls.delayed_events, self.federation_out.sender, self.pushers)
        keeping = (self.accounts.last_seen, self.rooms.presence, self.media, self.mail)
        for part in (*doing, *keeping):
            try:
                await part.stop()
            except DatabaseUnavailable as error:
                self.log.warn("pending data could not be written: {error}", error=error)
            except Exception:  # the other parts have data to write, too
                self.log.failure("a part of the server failed to stop")
        await self.database.close()


def build(
    config: Config,
    clock: IReactorTime,
    database: Database,
    *,
    key: SigningKey,
    threads: Threads,
    directory_threads: Threads,
    media_threads: MediaThreads,
    mail_thread: Executor,
    wire: Wire,
    web: Web,
    fetch: Fetch,
    follow: Follow,
    preview_web: PreviewWeb,
    random: RandomBytes,
    access_log: AccessLog,
    monotonic: Callable[[], float],
    registry: CollectorRegistry | None = None,
    make_relay: MakeRelay = smtp_relay,
) -> Server:
    """Build a server from its configuration.

    - `threads` hash passwords; `directory_threads` wait for directories.
    - `wire` sends requests to other servers; `web` to push gateways and identity providers.
    - `fetch` reads addresses of the federation; `follow` follows redirects of other servers.
    - `preview_web` fetches linked pages for previews.
    - `random` returns random bytes; `monotonic` is a clock that is never set.
    - `registry` may hold metrics of parts made earlier, such as the database.

    Raises OSError if the media folder cannot be created, and `ValueError` for unusable settings of
    identity providers.
    """
    server_name = ServerName(config.server_name)
    name = config.name
    registry = registry or CollectorRegistry()
    limiter = RateLimiter(clock, rates_of(config.limits))
    mail = MailParts(config, clock, database, limiter, mail_thread, make_relay, random, registry)
    accounts = AccountParts(config, clock, database, limiter, threads, random, mail, web, monotonic)
    identity = ServerIdentity(server_name, key)
    rooms = RoomParts(config, clock, database, limiter, identity, accounts)
    people = PeopleParts(config, clock, database, limiter, identity, accounts, rooms, mail, web)
    calls = CallParts(config, clock, database, limiter, identity, accounts, rooms)
    finding = SearchParts(config.search, database, identity, accounts, rooms, registry)
    federation = FederationParts(config, clock, database, wire, fetch, identity, rooms, registry)
    encryption = EncryptionParts(
        database,
        limiter,
        identity,
        federation.policy,
        accounts,
        people.confirmation,
        rooms,
    )
    incoming = IncomingParts(clock, database, federation, rooms, registry)
    retention = RetentionParts(config, database, identity, accounts, rooms, monotonic, registry)
    exploring = ExploringParts(
        database,
        identity,
        accounts,
        rooms,
        remote_spaces=RemoteHierarchies(
            DirectoryRequests(federation.requests),
            Candidates(federation.policy, server_name),
            rooms.now_ms,
        ),
        remote_times=incoming.times,
    )
    federation_out = FederationOutParts(
        config.federation.federation,
        clock,
        database,
        limiter,
        random,
        accounts,
        rooms,
        encryption,
        federation,
        registry,
    )
    federated_rooms = FederatedRoomParts(
        clock,
        database,
        limiter,
        rooms,
        federation,
        federation_out.sender,
        tells_profiles=config.federation.allow_profile_lookup_over_federation,
    )
    pushers = PusherParts(
        config, clock, database, random, web, identity, accounts, rooms, mail, registry
    )
    files = MediaParts(
        config,
        clock,
        database,
        limiter,
        federation,
        follow,
        preview_web,
        media_threads,
        random,
        accounts.plugins,
        registry,
    )
    rtc = RTCTransports(config.calls.matrix_rtc.transports)
    oauth = OAuthParts(config, clock, database, limiter, accounts)
    pages = WebParts(config, clock, database, identity, accounts, mail, oauth, people, rooms)
    upstream = UpstreamParts(
        config,
        clock,
        database,
        limiter,
        web,
        directory_threads,
        accounts,
        rooms,
        people,
        files,
        pages,
    )
    services: Sequence[object] = (
        administration_of_devices(database, identity, accounts, people),
        administration_of_users(database, identity, accounts, rooms, people, upstream),
        *federation.edge.services,
        accounts.acting_services,
        accounts.application_passwords,
        accounts.audit,
        accounts.registration,
        accounts.registration_tokens,
        accounts.renewals,
        accounts.sessions,
        accounts.shared_secret_registration,
        accounts.sign_in,
        people.account_data,
        people.accounts,
        people.devices,
        people.login_tokens,
        people.moderation,
        people.filters,
        people.push_rules,
        pushers.pushers,
        pushers.unsubscribing,
        calls.delayed_events,
        calls.openid,
        calls.turn,
        encryption.backups,
        encryption.cross_signing,
        encryption.dehydrated_devices,
        encryption.to_device,
        *exploring.services,
        finding.directory,
        finding.messages,
        federated_rooms.handshakes,
        federated_rooms.invitations,
        federated_rooms.query_answers,
        *files.services(),
        federation_out.destinations,
        federation_out.everyones_keys,
        federation_out.own_devices,
        incoming.form,
        incoming.served,
        incoming.transactions,
        rooms.access,
        rooms.creation,
        rooms.device_keys,
        rooms.device_lists,
        rooms.directory,
        rooms.markers,
        rooms.notifications,
        rooms.old_sync,
        rooms.presence,
        rooms.profile_access,
        rooms.profiles,
        rooms.reading,
        rooms.relations,
        rooms.room_memberships,
        rooms.sending,
        rooms.sliding_sync,
        rooms.sync,
        rooms.thread_subscriptions,
        rooms.thread_updates,
        rooms.typing,
        rooms.upgrades,
        registry,
        mail.languages,
        mail.validation,
        accounts.phones,
        people.threepids,
        people.bindings,
        *pages.services,
        *oauth.services,
        *upstream.services,
        *offers_of(config, accounts, mail, oauth),
        *retention.services,
        rtc,
        ClientDiscovery(
            name.public_baseurl,
            {
                **rtc.in_well_known,
                **identity_server_of(name),
                **name.extra_well_known_client_content,
            },
        ),
        Discovery(
            server_name,
            delegates_to_443=name.serve_server_wellknown,
            admin_contact=name.admin_contact,
            support_page=name.support_page,
            policy_server_public_key=name.policy_server_public_key,
        ),
    )
    router = Router(
        SOURCES,
        index_by_type(services),
        guard=Guard(
            limiter,
            tokens=accounts.access_tokens,
            appservices=accounts.acting_services if accounts.acting_services.are_there else None,
            signatures=federation_out.signatures,
            turns=federation.edge.turns,
            slow_turns=federation.edge.slow_turns,
            token_in_query=config.sessions.accept_token_in_query,
        ),
        body_limits={BodyLimit.UPLOAD: files.repository.max_upload_size},
    )
    maintenance_jobs = jobs_of(
        clock,
        database,
        accounts.uia,
        people.login_tokens,
        mail.validations,
        rooms.presence,
        accounts.last_seen,
    )
    CacheMetrics(
        registry,
        {
            **rooms.caches,
            "access_tokens": Entries(accounts.access_tokens.cache),
            "devices": Entries(encryption.device_cache.cache),
            "filters": people.filters.cache,
        },
    )
    all_jobs = [
        *finding.jobs,
        *retention.jobs,
        *calls.jobs(),
        *people.jobs(),
        *incoming.jobs(),
        *federation_out.jobs(),
        *federated_rooms.jobs(),
        *encryption.jobs(),
        *pushers.jobs(),
        *files.jobs(),
        *pages.jobs(),
        *oauth.jobs(),
        *upstream.jobs(),
        *edge_jobs(federation.edge.member_lists),
        *maintenance_jobs,
    ]
    jobs = Jobs(clock, all_jobs, JobMetrics(registry))
    return Server(
        config,
        clock,
        database,
        router,
        accounts,
        rooms,
        people,
        files,
        mail,
        finding,
        retention,
        calls,
        federation,
        incoming,
        federation_out,
        pushers,
        pages,
        oauth,
        HttpMetrics(registry),
        access_log,
        jobs,
    )


def index_by_type(services: Sequence[object]) -> Mapping[type, object]:
    """Index services by type, as handlers ask for them."""
    return {type(service): service for service in services}
