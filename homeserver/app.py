"""Builds a server, once, by plain construction in the order of the layers. No other module knows
all parts.

The clock, the random source and the threads for passwords are arguments, so a test builds the same
server with its own. Two servers can run in one process.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IReactorFDSet,
    IReactorSSL,
    IReactorTCP,
    IReactorTime,
    IReactorUNIX,
)
from twisted.logger import Logger

from federation.http_client.client import WebClient
from federation.peers.identity import ServerIdentity
from federation.peers.member_list_refresher import Fetch
from federation.peers.wire import Wire
from federation.protocol.ids import ServerName
from federation.protocol.signing import SigningKey
from federation.remote.directory import RemoteDirectoryClient
from federation.remote.media import Follow
from federation.rooms.server_fallback import ServerFallback
from federation.rooms.serving.remote_spaces import RemoteHierarchies
from homeserver.api.endpoint import BodyLimit
from homeserver.cluster.background import Background
from homeserver.cluster.jobs import Jobs
from homeserver.cluster.peers import PeerNodes
from homeserver.config.configuration import Config
from homeserver.http.guard import Guard
from homeserver.http.rate_limits import RateLimiter
from homeserver.http.router import Router
from homeserver.http.sites import Listeners, Sites
from homeserver.observe.access_log import AccessLog
from homeserver.observe.caches import CacheMetrics, UnsizedCache
from homeserver.observe.metrics import HttpMetrics, JobMetrics
from homeserver.services.calls.rtc_transports import RTCTransports
from homeserver.services.discovery.client import ClientDiscovery
from homeserver.services.discovery.server import ServerDiscovery
from homeserver.services.login.approvals import NoNewAccountTasks
from homeserver.services.login.passwords import Threads
from homeserver.services.previews.fetching import PreviewClient
from homeserver.services.tokens.secret_tokens import RandomBytes
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.administration import administration_of_devices, administration_of_users
from homeserver.wiring.calls import CallParts
from homeserver.wiring.capabilities import offers_of
from homeserver.wiring.devices import DeviceParts
from homeserver.wiring.email import MailParts, MakeRelay, smtp_relay
from homeserver.wiring.encryption import EncryptionParts
from homeserver.wiring.endpoints import SOURCES
from homeserver.wiring.exploring import ExploringParts
from homeserver.wiring.federated_rooms import FederatedRoomParts, answer_queries
from homeserver.wiring.federation import FederationParts
from homeserver.wiring.federation_peers import EdgeParts, edge_jobs, list_source_of, rules_of
from homeserver.wiring.federation_receiver import IncomingParts
from homeserver.wiring.federation_sender import FederationOutParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.jobs import jobs_of
from homeserver.wiring.limits import rates_of
from homeserver.wiring.login import LoginParts
from homeserver.wiring.media import MediaParts, MediaThreads
from homeserver.wiring.notifications import NotificationParts
from homeserver.wiring.oauth import OAuthParts
from homeserver.wiring.presence import WhoIsThere
from homeserver.wiring.profiles import ProfileParts
from homeserver.wiring.push_rules import PushParts
from homeserver.wiring.pushers import PusherParts
from homeserver.wiring.retention import RetentionParts
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.room_services import RoomServiceParts
from homeserver.wiring.search import SearchParts
from homeserver.wiring.sync import SyncServiceParts
from homeserver.wiring.terms import blocks_requests, consents_of
from homeserver.wiring.upstream import UpstreamParts
from homeserver.wiring.user_data import PeopleParts, identity_server_of
from homeserver.wiring.user_settings import UserSettingParts
from homeserver.wiring.web import WebParts
from storage.engine.database import Database
from storage.engine.executors import Executor


class Server(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A complete server: its parts by topic, and how to start and stop it."""

    log: ClassVar[Logger] = Logger()

    config: Config
    clock: IReactorTime
    database: Database
    sites: Sites
    listeners: Listeners
    background: Background
    jobs: Jobs
    peer_nodes: PeerNodes | None

    accounts: AccountParts
    calls: CallParts
    devices: DeviceParts
    edge: EdgeParts
    federated_rooms: FederatedRoomParts
    federation: FederationParts
    outgoing_federation: FederationOutParts
    search: SearchParts
    login: LoginParts
    history: RoomHistoryParts
    incoming_federation: IncomingParts
    mail: MailParts
    media: MediaParts
    notifications: NotificationParts
    oauth: OAuthParts
    pages: WebParts
    users: PeopleParts
    presence: WhoIsThere
    profiles: ProfileParts
    push_rules: PushParts
    pushers: PusherParts
    retention: RetentionParts
    room_engine: RoomEngineParts
    room_reading: RoomReadingParts
    room_services: RoomServiceParts
    rooms: RoomDataParts
    settings: UserSettingParts
    syncing: SyncServiceParts

    def start(self, tcp: IReactorTCP, tls: IReactorSSL, unix: IReactorUNIX) -> None:
        """Start to listen, then start the background work. Raises `CannotListenError`, and for TLS
        `OSError`, `SSL.Error`."""
        self.media.sweep()
        self.listeners.start(tcp, tls, unix)
        self._do(self.edge.member_lists.start())
        self.background.start()
        if self.peer_nodes is not None:
            self.peer_nodes.start(IReactorFDSet(tcp, None))
        self.listeners.log_addresses()

    def reload(self, config: Config) -> None:
        """Apply the options that can change without a restart: the federation policy and
        certificates.

        Raises `OSError`, `ValueError`, `SSL.Error` if a certificate cannot be read; the old one
        stays then.
        """
        source = list_source_of(config.federation)
        self.edge.policy.change(rules_of(config.federation))
        self._do(self.edge.member_lists.change(source))
        self.listeners.reload_certificates()

    def _do(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(
            lambda failure: self.log.failure("the federation member list was not read", failure)
        )

    async def stop(self) -> None:
        """Stop listening, write pending data, and close the database. Connections end with the
        process."""
        self.log.info("stopping")
        await self.listeners.stop()
        await self.background.stop()
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
    web: WebClient,
    fetch: Fetch,
    follow: Follow,
    preview_web: PreviewClient,
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
    identity = ServerIdentity(server_name, key)
    base = Foundation(config, clock, database, limiter, identity, registry)
    mail = MailParts(config, clock, database, limiter, mail_thread, make_relay, random, registry)
    consents = consents_of(base)
    accounts = AccountParts(
        config,
        clock,
        database,
        limiter,
        threads,
        random,
        mail,
        monotonic,
        consents=consents if blocks_requests(config.pages.user_consent) else None,
    )
    edge = EdgeParts(base, wire, fetch)

    # rooms: what is stored, then the engine, then what other servers have to do with them
    rooms = RoomDataParts(base, accounts.others)
    push_rules = PushParts(base, rooms)
    classify = push_rules.outcomes.classify
    room_engine = RoomEngineParts(base, edge, rooms, classify)
    history = RoomHistoryParts(base, rooms)
    settings = UserSettingParts(base, accounts)
    presence = WhoIsThere(base, accounts, rooms.memberships)
    devices = DeviceParts(base, edge.policy, accounts, rooms, room_engine)
    federation = FederationParts(base, edge, rooms, room_engine, classify)
    federation_out = FederationOutParts(
        base, random, accounts, edge, rooms, room_engine, history, presence, devices
    )
    incoming = IncomingParts(
        base, edge, rooms, room_engine, history, federation, federation_out.edus
    )
    federated_rooms = FederatedRoomParts(
        base,
        edge,
        rooms,
        room_engine,
        federation,
        federation_out.sender,
        settings.invite_policy,
        classify,
    )

    # what users of this server do with rooms
    room_reading = RoomReadingParts(base, rooms, room_engine, history, settings, incoming.backfill)
    notifications = NotificationParts(
        base, push_rules, rooms, room_engine, history, settings, room_reading
    )
    profiles = ProfileParts(base, accounts, rooms, room_engine, federated_rooms.directory)
    room_services = RoomServiceParts(
        base,
        accounts,
        push_rules,
        rooms,
        room_engine,
        settings,
        room_reading,
        federated_rooms,
        profiles,
    )
    syncing = SyncServiceParts(
        base,
        accounts,
        rooms,
        room_engine,
        history,
        settings,
        room_reading,
        notifications,
        presence,
        devices,
    )
    pushers = PusherParts(
        base,
        random,
        web,
        accounts,
        rooms,
        settings,
        room_reading,
        notifications,
        presence,
        mail,
    )

    # accounts, which may join rooms and get pushers when they are made
    login = LoginParts(
        config,
        clock,
        database,
        limiter,
        accounts,
        mail,
        web,
        newcomers=(
            room_services.first_rooms
            if config.registration.auto_join_rooms
            else NoNewAccountTasks()
        ),
        addresses=pushers.new_addresses,
    )
    people = PeopleParts(
        base, web, accounts, login, mail, push_rules, rooms, presence, devices, room_services
    )
    calls = CallParts(base, accounts, rooms, history, room_reading, room_services)
    finding = SearchParts(base, accounts, rooms, room_engine, history, room_reading)
    encryption = EncryptionParts(base, accounts, login, people.confirmation, devices)
    retention = RetentionParts(base, accounts, rooms, history, monotonic)
    exploring = ExploringParts(
        base,
        accounts,
        rooms,
        room_reading,
        room_services,
        remote_spaces=RemoteHierarchies(
            RemoteDirectoryClient(edge.requests),
            ServerFallback(edge.policy, server_name),
            base.now_ms,
        ),
        remote_times=incoming.times,
    )
    files = MediaParts(base, edge, follow, preview_web, media_threads, random, accounts.plugins)
    rtc = RTCTransports(config.calls.matrix_rtc.transports)
    oauth = OAuthParts(config, clock, database, limiter, accounts, login)
    pages = WebParts(base, accounts, login, mail, oauth, people, profiles, room_services, consents)
    upstream = UpstreamParts(
        base, web, directory_threads, accounts, login, profiles, people, files, pages
    )
    query_answers = answer_queries(
        profiles.profiles,
        room_services.directory,
        tells_profiles=config.federation.allow_profile_lookup_over_federation,
    )
    services: Sequence[object] = (
        administration_of_devices(database, identity, accounts, people),
        administration_of_users(
            database, identity, accounts, login, profiles, room_reading, people, upstream
        ),
        *edge.services,
        login.acting_services,
        accounts.application_passwords,
        accounts.audit,
        login.registration,
        login.registration_tokens,
        accounts.renewals,
        accounts.sessions,
        login.shared_secret_registration,
        login.sign_in,
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
        *exploring.services,
        finding.directory,
        finding.messages,
        federated_rooms.handshakes,
        federated_rooms.invitations,
        query_answers,
        *files.services(),
        federation_out.destinations,
        federation_out.everyones_keys,
        federation_out.own_devices,
        incoming.form,
        incoming.served,
        incoming.transactions,
        devices.device_keys,
        devices.device_lists,
        devices.to_device,
        notifications.notifications,
        presence.presence,
        presence.typing,
        profiles.access,
        profiles.profiles,
        room_engine.access,
        room_reading.markers,
        room_reading.reading,
        room_reading.relations,
        room_reading.thread_subscriptions,
        room_reading.thread_updates,
        room_services.creation,
        room_services.directory,
        room_services.memberships,
        room_services.sending,
        room_services.upgrades,
        syncing.old_sync,
        syncing.sliding_sync,
        syncing.sync,
        registry,
        mail.languages,
        mail.validation,
        login.phones,
        people.threepids,
        people.bindings,
        *pages.services,
        *oauth.services,
        *upstream.services,
        *offers_of(config, login, mail, oauth),
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
        ServerDiscovery(
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
            appservices=login.acting_services if login.acting_services.has_services else None,
            signatures=federation_out.signatures,
            admission=edge.admission,
            slow_admission=edge.slow_admission,
            token_in_query=config.sessions.accept_token_in_query,
        ),
        body_limits={BodyLimit.UPLOAD: files.repository.max_upload_size},
    )
    maintenance_jobs = jobs_of(
        clock,
        database,
        login.uia,
        people.login_tokens,
        mail.validations,
        presence.presence,
        accounts.last_seen,
    )
    CacheMetrics(
        registry,
        {
            "access_tokens": UnsizedCache(accounts.access_tokens.cache),
            **rooms.caches,
            "rooms": room_engine.engine,
            **push_rules.caches,
            **settings.caches,
            **devices.caches,
            **room_reading.caches,
            **notifications.caches,
            **syncing.caches,
            "filters": people.filters.cache,
        },
    )
    all_jobs = [
        *finding.jobs,
        *retention.jobs,
        *calls.jobs(),
        *people.jobs(),
        *profiles.jobs(),
        *room_services.jobs(),
        *incoming.jobs(),
        *federation_out.jobs(),
        *federated_rooms.jobs(),
        *encryption.jobs(),
        *pushers.jobs(),
        *files.jobs(),
        *pages.jobs(),
        *oauth.jobs(),
        *upstream.jobs(),
        *edge_jobs(edge.member_lists),
        *maintenance_jobs,
    ]
    jobs = Jobs(clock, all_jobs, JobMetrics(registry))
    # of several nodes, another one may be at this work: there, the jobs resume it
    resumed = (
        (
            room_services.first_rooms,
            room_services.related_redactions,
            federated_rooms.planned_invites,
        )
        if accounts.peer_nodes is None
        else ()
    )
    background = Background(
        start=(
            accounts.last_seen,
            profiles,
            presence,
            room_engine,
            *resumed,
            mail,
            calls.delayed_events,
            incoming.inbox,
            incoming.completions,
            federation.unproved,
            jobs,
            federation_out.sender,
            pushers,
        ),
        cancel=(
            *(() if accounts.peer_nodes is None else (accounts.peer_nodes,)),
            incoming.completions,
            federation.unproved,
            incoming.inbox,
            federated_rooms.leaving,
            federated_rooms.planned_invites,
        ),
        stop=(
            jobs,
            calls.delayed_events,
            federation_out.sender,
            pushers,
            accounts.last_seen,
            presence.presence,
            files,
            mail,
        ),
    )
    sites = Sites(
        config,
        clock,
        router,
        metrics=HttpMetrics(registry),
        access_log=access_log,
        spool=files.contents.spool,
        error_page=pages.error_pages.make,
    )
    return Server(
        config=config,
        clock=clock,
        database=database,
        sites=sites,
        listeners=Listeners(config, sites),
        background=background,
        jobs=jobs,
        peer_nodes=accounts.peer_nodes,
        accounts=accounts,
        calls=calls,
        devices=devices,
        edge=edge,
        federated_rooms=federated_rooms,
        federation=federation,
        outgoing_federation=federation_out,
        search=finding,
        login=login,
        history=history,
        incoming_federation=incoming,
        mail=mail,
        media=files,
        notifications=notifications,
        oauth=oauth,
        pages=pages,
        users=people,
        presence=presence,
        profiles=profiles,
        push_rules=push_rules,
        pushers=pushers,
        retention=retention,
        room_engine=room_engine,
        room_reading=room_reading,
        room_services=room_services,
        rooms=rooms,
        settings=settings,
        syncing=syncing,
    )


def index_by_type(services: Sequence[object]) -> Mapping[type, object]:
    """Index services by type, as handlers ask for them."""
    return {type(service): service for service in services}
