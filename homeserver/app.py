"""Builds a server: creates each part after those that it needs, and passes them to it.

The clock, the random source and the threads that hash passwords are arguments. So a test builds the
same server with replacements for these. Two servers can run in one process.
"""

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry
from twisted.internet.interfaces import (
    IReactorTime,
)

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
from homeserver.config.configuration import Config
from homeserver.http.rate_limits import RateLimiter, read_rates
from homeserver.http.request_authorization import RequestAuthorizer
from homeserver.http.router import Router
from homeserver.http.sites import Listeners, Sites
from homeserver.observe.access_log import AccessLog
from homeserver.observe.caches import CacheMetrics, UnsizedCache
from homeserver.observe.metrics import HttpMetrics, JobMetrics
from homeserver.server import Server
from homeserver.services.calls.rtc_transports import RTCTransports
from homeserver.services.discovery.client import ClientDiscovery
from homeserver.services.discovery.server import ServerDiscovery
from homeserver.services.login.approvals import NoNewAccountTasks
from homeserver.services.login.passwords import Threads
from homeserver.services.previews.fetching import PreviewClient
from homeserver.services.tokens.secret_tokens import RandomBytes
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.administration import make_device_administration, make_user_administration
from homeserver.wiring.calls import CallParts
from homeserver.wiring.capabilities import make_capabilities
from homeserver.wiring.devices import DeviceParts
from homeserver.wiring.email import EmailParts, MakeRelay, smtp_relay
from homeserver.wiring.encryption import EncryptionParts
from homeserver.wiring.endpoints import SOURCES
from homeserver.wiring.federated_rooms import FederatedRoomParts, make_query_handlers
from homeserver.wiring.federation import FederationParts
from homeserver.wiring.federation_peers import FederationPeerParts, member_list_jobs
from homeserver.wiring.federation_receiver import FederationReceiverParts
from homeserver.wiring.federation_sender import FederationSenderParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.jobs import make_maintenance_jobs
from homeserver.wiring.login import LoginParts
from homeserver.wiring.media import MediaParts, MediaThreads
from homeserver.wiring.notifications import NotificationParts
from homeserver.wiring.oauth import OAuthParts
from homeserver.wiring.presence import PresenceParts
from homeserver.wiring.profiles import ProfileParts
from homeserver.wiring.push_rules import PushRuleParts
from homeserver.wiring.pushers import PusherParts
from homeserver.wiring.retention import RetentionParts
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from homeserver.wiring.room_lookup import RoomLookupParts
from homeserver.wiring.room_reading import RoomReadingParts
from homeserver.wiring.room_services import RoomServiceParts
from homeserver.wiring.search import SearchParts
from homeserver.wiring.sync import SyncingParts
from homeserver.wiring.terms import blocks_requests, make_consents
from homeserver.wiring.upstream import UpstreamParts
from homeserver.wiring.user_data import UserDataParts, read_identity_server
from homeserver.wiring.user_settings import UserSettingParts
from homeserver.wiring.web import WebParts
from storage.engine.database import Database
from storage.engine.executors import Executor


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
    limiter = RateLimiter(clock=clock, rates=read_rates(config.limits))
    identity = ServerIdentity(server_name, key)
    base = Foundation(config, clock, database, limiter, identity, registry)
    email = EmailParts(
        config=config,
        clock=clock,
        database=database,
        limiter=limiter,
        executor=mail_thread,
        make_relay=make_relay,
        random=random,
        registry=registry,
    )
    consents = make_consents(base)
    accounts = AccountParts(
        config=config,
        clock=clock,
        database=database,
        limiter=limiter,
        threads=threads,
        random=random,
        email=email,
        monotonic=monotonic,
        consents=consents if blocks_requests(config.pages.user_consent) else None,
    )
    peers = FederationPeerParts(base=base, wire=wire, fetch=fetch)

    # rooms: what is stored, then the engine, then what other servers have to do with them
    rooms = RoomDataParts(base=base, incoming_changes=accounts.incoming_changes)
    push_rules = PushRuleParts(base=base, rooms=rooms)
    classify = push_rules.outcomes.classify
    room_engine = RoomEngineParts(base=base, peers=peers, rooms=rooms, classify=classify)
    history = RoomHistoryParts(base=base, rooms=rooms)
    settings = UserSettingParts(base=base, accounts=accounts)
    presence = PresenceParts(base=base, accounts=accounts, memberships=rooms.memberships)
    devices = DeviceParts(
        base=base, policy=peers.policy, accounts=accounts, rooms=rooms, room_engine=room_engine
    )
    federation = FederationParts(
        base=base, peers=peers, rooms=rooms, room_engine=room_engine, classify=classify
    )
    federation_sender = FederationSenderParts(
        base=base,
        random=random,
        accounts=accounts,
        peers=peers,
        rooms=rooms,
        room_engine=room_engine,
        history=history,
        presence=presence,
        devices=devices,
    )
    federation_receiver = FederationReceiverParts(
        base=base,
        peers=peers,
        rooms=rooms,
        room_engine=room_engine,
        history=history,
        federation=federation,
        edus=federation_sender.edus,
    )
    federated_rooms = FederatedRoomParts(
        base=base,
        peers=peers,
        rooms=rooms,
        room_engine=room_engine,
        federation=federation,
        sender=federation_sender.sender,
        invite_policy=settings.invite_policy,
        classify=classify,
    )

    # what users of this server do with rooms
    room_reading = RoomReadingParts(
        base=base,
        rooms=rooms,
        room_engine=room_engine,
        history=history,
        settings=settings,
        source=federation_receiver.backfill,
    )
    notifications = NotificationParts(
        base=base,
        push=push_rules,
        rooms=rooms,
        room_engine=room_engine,
        history=history,
        settings=settings,
        room_reading=room_reading,
    )
    profiles = ProfileParts(
        base=base,
        accounts=accounts,
        rooms=rooms,
        room_engine=room_engine,
        remote=federated_rooms.directory,
    )
    room_services = RoomServiceParts(
        base=base,
        accounts=accounts,
        push=push_rules,
        rooms=rooms,
        room_engine=room_engine,
        settings=settings,
        room_reading=room_reading,
        federated_rooms=federated_rooms,
        profiles=profiles,
    )
    sync = SyncingParts(
        base=base,
        accounts=accounts,
        rooms=rooms,
        room_engine=room_engine,
        history=history,
        settings=settings,
        room_reading=room_reading,
        notifications=notifications,
        presence=presence,
        devices=devices,
    )
    pushers = PusherParts(
        base=base,
        random=random,
        web=web,
        accounts=accounts,
        rooms=rooms,
        settings=settings,
        room_reading=room_reading,
        notifications=notifications,
        presence=presence,
        email=email,
    )

    # accounts, which may join rooms and get pushers when they are made
    login = LoginParts(
        config=config,
        clock=clock,
        database=database,
        limiter=limiter,
        accounts=accounts,
        email=email,
        web=web,
        new_account_tasks=(
            room_services.auto_join_rooms
            if config.registration.auto_join_rooms
            else NoNewAccountTasks()
        ),
        new_account_emails=pushers.new_addresses,
    )
    user_data = UserDataParts(
        base=base,
        web=web,
        accounts=accounts,
        login=login,
        email=email,
        push=push_rules,
        rooms=rooms,
        presence=presence,
        devices=devices,
        services=room_services,
    )
    calls = CallParts(
        base=base,
        accounts=accounts,
        rooms=rooms,
        history=history,
        room_reading=room_reading,
        services=room_services,
    )
    search = SearchParts(
        base=base,
        accounts=accounts,
        rooms=rooms,
        room_engine=room_engine,
        history=history,
        room_reading=room_reading,
    )
    encryption = EncryptionParts(
        base=base,
        accounts=accounts,
        login=login,
        confirmation=user_data.confirmation,
        devices=devices,
    )
    retention = RetentionParts(
        base=base, accounts=accounts, rooms=rooms, history=history, monotonic=monotonic
    )
    room_lookup = RoomLookupParts(
        base=base,
        accounts=accounts,
        rooms=rooms,
        room_reading=room_reading,
        services=room_services,
        remote_spaces=RemoteHierarchies(
            requests=RemoteDirectoryClient(peers.requests),
            candidates=ServerFallback(policy=peers.policy, own=server_name),
            now_ms=base.now_ms,
        ),
        remote_times=federation_receiver.times,
    )
    media = MediaParts(
        base=base,
        peers=peers,
        follow=follow,
        preview_web=preview_web,
        threads=media_threads,
        random=random,
        plugins=accounts.plugins,
    )
    rtc = RTCTransports(config.calls.matrix_rtc.transports)
    oauth = OAuthParts(
        config=config,
        clock=clock,
        database=database,
        limiter=limiter,
        accounts=accounts,
        login=login,
    )
    pages = WebParts(
        base=base,
        accounts=accounts,
        login=login,
        email=email,
        oauth=oauth,
        user_data=user_data,
        profiles=profiles,
        services=room_services,
        consents=consents,
    )
    upstream = UpstreamParts(
        base=base,
        web=web,
        threads=directory_threads,
        accounts=accounts,
        login=login,
        profiles=profiles,
        user_data=user_data,
        media=media,
        pages=pages,
    )
    query_handlers = make_query_handlers(
        profiles.profiles,
        room_services.directory,
        answers_profile_queries=config.federation.allow_profile_lookup_over_federation,
    )
    services: Sequence[object] = (
        make_device_administration(database, identity, accounts, user_data),
        make_user_administration(
            database, identity, accounts, login, profiles, room_reading, user_data, upstream
        ),
        query_handlers,
        registry,
        rtc,
        *accounts.services,
        *calls.services,
        *devices.services,
        *peers.services,
        *encryption.services,
        *room_lookup.services,
        *federated_rooms.services,
        *federation_sender.services,
        *search.services,
        *media.services,
        *federation_receiver.services,
        *login.services,
        *email.services,
        *notifications.services,
        *oauth.services,
        *pages.services,
        *user_data.services,
        *presence.services,
        *profiles.services,
        *pushers.services,
        *retention.services,
        *room_engine.services,
        *room_reading.services,
        *room_services.services,
        *sync.services,
        *upstream.services,
        *make_capabilities(config, login, email, oauth),
        ClientDiscovery(
            public_baseurl=name.public_baseurl,
            extra_fields={
                **rtc.in_well_known,
                **read_identity_server(name),
                **name.extra_well_known_client_content,
            },
        ),
        ServerDiscovery(
            server_name=server_name,
            delegates_to_443=name.serve_server_wellknown,
            admin_contact=name.admin_contact,
            support_page=name.support_page,
            policy_server_public_key=name.policy_server_public_key,
        ),
    )
    router = Router(
        sources=SOURCES,
        services=index_by_type(services),
        authorizer=RequestAuthorizer(
            limiter=limiter,
            tokens=accounts.access_tokens,
            appservices=login.acting_services if login.acting_services.has_services else None,
            signatures=federation_sender.signatures,
            admission=peers.admission,
            slow_admission=peers.slow_admission,
            token_in_query=config.sessions.accept_token_in_query,
        ),
        body_limits={BodyLimit.UPLOAD: media.repository.max_upload_size},
    )
    maintenance_jobs = make_maintenance_jobs(
        clock,
        database,
        login.uia,
        user_data.login_tokens,
        email.validations,
        presence.presence,
        accounts.last_seen,
    )
    CacheMetrics(
        registry=registry,
        caches={
            "access_tokens": UnsizedCache(accounts.access_tokens.cache),
            **rooms.caches,
            "rooms": room_engine.engine,
            **push_rules.caches,
            **settings.caches,
            **devices.caches,
            **room_reading.caches,
            **notifications.caches,
            **sync.caches,
            "filters": user_data.filters.cache,
        },
    )
    all_jobs = [
        *search.jobs,
        *retention.jobs,
        *calls.jobs(),
        *user_data.jobs(),
        *profiles.jobs(),
        *room_services.jobs(),
        *federation_receiver.jobs(),
        *federation_sender.jobs(),
        *federated_rooms.jobs(),
        *encryption.jobs(),
        *pushers.jobs(),
        *media.jobs(),
        *pages.jobs(),
        *oauth.jobs(),
        *upstream.jobs(),
        *member_list_jobs(peers.member_lists),
        *maintenance_jobs,
    ]
    jobs = Jobs(clock=clock, jobs=all_jobs, metrics=JobMetrics(registry))
    # of several nodes, another one may be at this work: there, the jobs resume it
    resumed = (
        (
            room_services.auto_join_rooms,
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
            email,
            calls.delayed_events,
            federation_receiver.inbox,
            federation_receiver.completions,
            federation.unverified_events,
            jobs,
            federation_sender.sender,
            pushers,
        ),
        cancel=(
            *(() if accounts.peer_nodes is None else (accounts.peer_nodes,)),
            federation_receiver.completions,
            federation.unverified_events,
            federation_receiver.inbox,
            federated_rooms.leaving,
            federated_rooms.planned_invites,
        ),
        stop=(
            jobs,
            calls.delayed_events,
            federation_sender.sender,
            pushers,
            accounts.last_seen,
            presence.presence,
            media,
            email,
        ),
    )
    sites = Sites(
        config=config,
        clock=clock,
        router=router,
        metrics=HttpMetrics(registry),
        access_log=access_log,
        spool=media.contents.spool,
        error_page=pages.pages.render_error,
    )
    return Server(
        config=config,
        clock=clock,
        database=database,
        sites=sites,
        listeners=Listeners(config=config, sites=sites),
        background=background,
        jobs=jobs,
        peer_nodes=accounts.peer_nodes,
        accounts=accounts,
        calls=calls,
        devices=devices,
        peers=peers,
        federated_rooms=federated_rooms,
        federation=federation,
        federation_sender=federation_sender,
        search=search,
        login=login,
        history=history,
        federation_receiver=federation_receiver,
        email=email,
        media=media,
        notifications=notifications,
        oauth=oauth,
        pages=pages,
        user_data=user_data,
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
        sync=sync,
    )


def index_by_type(services: Sequence[object]) -> Mapping[type, object]:
    """Index services by type, as handlers ask for them."""
    return {type(service): service for service in services}
