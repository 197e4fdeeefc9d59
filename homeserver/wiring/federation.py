"""Wires the processing of remote events."""

from federation.remote.events import MAX_SHORT_STATE_BYTES, STATE_SLOTS, EventClient
from federation.remote.large_responses import LargeResponseSlots
from federation.rooms.build import Classify
from federation.rooms.effects import StoredEffects
from federation.rooms.joins.join_import import JoinImporter
from federation.rooms.receive.check_sources import CheckServices
from federation.rooms.receive.content_restore import ContentRestorer
from federation.rooms.receive.outliers import Outliers
from federation.rooms.receive.persist import EventPersister
from federation.rooms.receive.receiver import Receiver
from federation.rooms.receive.state_imports import StateImports
from federation.rooms.receive.unaltered_copies import UnalteredCopies
from federation.rooms.receive.unverified_events import UnverifiedStateEvents
from federation.rooms.resolve import StateResolver
from federation.rooms.unacknowledged_leaves import UnacknowledgedLeaves
from homeserver.wiring.federation_peers import EdgeParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from storage.events.events import EventStore
from storage.partial_state.unverified_events import UnverifiedEventStore, UnverifiedEventWriter
from storage.rooms.partial_rooms import PartialRoomStore


class FederationParts:
    """Checks remote events and places them in rooms. Public attributes are for the other parts."""

    def __init__(
        self,
        base: Foundation,
        edge: EdgeParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        classify: Classify,
    ) -> None:
        database, clock, now_ms = base.database, base.clock, base.now_ms
        engine, policy_servers = room_engine.engine, room_engine.policy_servers
        self.identity = identity = base.identity
        store = EventStore(database)
        self.resolver = StateResolver(database, rooms.trees, rooms.chains, rooms.events)
        self.placements = placements = EventPersister(
            database,
            engine,
            rooms.events,
            self.resolver,
            rooms.writer,
            identity,
            classify,
            now_ms,
        )
        self.remote_events = EventClient(edge.requests, clock)
        self.long_states = LargeResponseSlots(
            clock, short_bytes=MAX_SHORT_STATE_BYTES, slots=STATE_SLOTS
        )
        true_copies = UnalteredCopies(
            self.remote_events, rooms.servers, edge.policy, identity.server_name, clock.seconds
        )
        questions = CheckServices(
            rooms.events,
            self.resolver,
            edge.keyring.get_signers,
            policy_servers.is_approved,
            policy_servers.approve_many,
            edge.keyring.prefetch,
            edge.keyring.lacks_keys_for,
            true_copies.find_all,
        )
        self.questions = questions
        late = ContentRestorer(database, engine, rooms.events, identity, now_ms)
        outliers = Outliers(
            database, rooms.events, store, placements, rooms.writer, questions, late, now_ms
        )
        self.imports = StateImports(outliers, store, clock)
        self.effects = StoredEffects(store, identity)
        self.unproved = UnverifiedStateEvents(
            database,
            UnverifiedEventStore(database),
            UnverifiedEventWriter(rooms.trees),
            engine,
            rooms.store,
            rooms.events,
            outliers,
            self.resolver,
            identity,
            clock,
        )
        self.receiver = Receiver(
            engine,
            rooms.events,
            store,
            self.resolver,
            placements,
            outliers,
            questions,
            room_engine.access,
            self.unproved,
            late,
        )
        self.unheard = UnacknowledgedLeaves(rooms.events, self.resolver, identity)
        self.adoptions = JoinImporter(
            database,
            engine,
            rooms.store,
            rooms.events,
            rooms.trees,
            rooms.membership_store,
            self.imports,
            self.effects,
            self.resolver,
            self.unheard,
            PartialRoomStore(database),
            rooms.writer,
            identity,
            questions,
            now_ms,
            self.unproved.schedule_first_attempt,
        )
