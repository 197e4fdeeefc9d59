"""Wires federation: requests in both directions, signing keys, and the processing of remote
events."""

from prometheus_client import CollectorRegistry
from twisted.internet.interfaces import IReactorTime

from federation.peers.identity import ServerIdentity
from federation.peers.member_lists import Fetch
from federation.peers.wire import Wire
from federation.receiver.edus import EduReceivers
from federation.remote.events import SHORT_STATE_BYTES, STATES_AT_ONCE, RemoteEvents
from federation.remote.large_responses import LongAnswers
from federation.remote.policy_servers import RemotePolicyServers
from federation.rooms.effects import StoredEffects
from federation.rooms.joins.join_import import Adoptions
from federation.rooms.policy_servers import PolicyServers
from federation.rooms.receive.check_sources import Questions
from federation.rooms.receive.content_restore import LateContents
from federation.rooms.receive.outliers import Outliers
from federation.rooms.receive.persist import Placements
from federation.rooms.receive.receiver import Receiver
from federation.rooms.receive.state_imports import StateImports
from federation.rooms.receive.unaltered_copies import TrueCopies
from federation.rooms.receive.unverified_events import UnprovedStates
from federation.rooms.resolve import StateResolver
from federation.rooms.unacknowledged_leaves import Unheard
from homeserver.config.configuration import Config
from homeserver.wiring.federation_peers import EdgeParts
from homeserver.wiring.rooms import RoomParts
from storage.engine.database import Database
from storage.events.events import EventStore
from storage.federation.policy_server_verdicts import PolicyJudgementStore
from storage.partial_state.unverified_events import UnprovedStore, UnprovedWriter


class FederationParts:
    """The core of federation. Public attributes are for the other parts and the router."""

    def __init__(
        self,
        config: Config,
        clock: IReactorTime,
        database: Database,
        wire: Wire,
        fetch: Fetch,
        identity: ServerIdentity,
        rooms: RoomParts,
        registry: CollectorRegistry,
    ) -> None:
        self.identity = identity
        self.joins_in_part = config.federation.federation.partial_state_joins
        self.edge = EdgeParts(
            config.federation,
            config.limits.rc_federation,
            config.keys,
            clock,
            database,
            wire,
            fetch,
            identity,
            rooms.now_ms,
            registry,
        )
        self.policy = self.edge.policy
        self.requests = self.edge.requests
        self.keyring = self.edge.keyring
        self.signed_requests = self.edge.signed_requests
        store = EventStore(database)
        self.resolver = StateResolver(database, rooms.trees, rooms.chains, rooms.events)
        self.placements = placements = Placements(
            database,
            rooms.engine,
            rooms.events,
            self.resolver,
            rooms.writer,
            identity,
            rooms.classify,
            rooms.now_ms,
        )
        self.policy_servers = PolicyServers(
            RemotePolicyServers(self.requests),
            rooms.servers,
            self.policy,
            identity,
            PolicyJudgementStore(database),
            rooms.now_ms,
        )
        rooms.engine.use_voucher(self.policy_servers.vouch)
        self.remote_events = RemoteEvents(self.requests, clock)
        self.long_states = LongAnswers(clock, short_bytes=SHORT_STATE_BYTES, places=STATES_AT_ONCE)
        true_copies = TrueCopies(
            self.remote_events, rooms.servers, self.policy, identity.server_name, clock.seconds
        )
        questions = Questions(
            rooms.events,
            self.resolver,
            self.keyring.get_signers,
            self.policy_servers.is_approved,
            self.policy_servers.judge,
            self.keyring.prepare,
            self.keyring.lacks_keys_for,
            true_copies.find_all,
        )
        self.questions = questions
        late = LateContents(database, rooms.engine, rooms.events, identity, rooms.now_ms)
        outliers = Outliers(
            database, rooms.events, store, placements, rooms.writer, questions, late, rooms.now_ms
        )
        self.imports = StateImports(outliers, store, clock)
        self.effects = StoredEffects(store, identity)
        self.access = rooms.access
        self.edus = EduReceivers(self.access)
        self.unproved = UnprovedStates(
            database,
            UnprovedStore(database),
            UnprovedWriter(rooms.trees),
            rooms.engine,
            rooms.store,
            rooms.events,
            outliers,
            self.resolver,
            identity,
            database.streams,
            clock,
        )
        self.receiver = Receiver(
            rooms.engine,
            rooms.events,
            store,
            self.resolver,
            placements,
            outliers,
            questions,
            self.access,
            self.unproved,
            late,
        )
        self.unheard = Unheard(rooms.events, self.resolver, identity)
        self.adoptions = Adoptions(
            database,
            rooms.engine,
            rooms.store,
            rooms.events,
            rooms.trees,
            rooms.membership_store,
            self.imports,
            self.effects,
            self.resolver,
            self.unheard,
            rooms.partial_store,
            rooms.writer,
            identity,
            questions,
            rooms.now_ms,
            self.unproved.first_attempt,
        )
