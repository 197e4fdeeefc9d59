"""Wires the checks of remote events, their storage in rooms, and the import of a room after a join.

`federation_receiver.py` wires the services that use these: transactions, missing events, backfill.
"""

from federation.remote.events import MAX_SHORT_STATE_BYTES, STATE_SLOTS, EventClient
from federation.remote.large_responses import LargeResponseSlots
from federation.rooms.build import Classify
from federation.rooms.joins.join_import import JoinImporter
from federation.rooms.receive.check_sources import CheckServices
from federation.rooms.receive.content_restore import ContentRestorer
from federation.rooms.receive.outliers import Outliers
from federation.rooms.receive.persist import EventPersister
from federation.rooms.receive.receiver import Receiver
from federation.rooms.receive.state_imports import StateImports
from federation.rooms.receive.unaltered_copies import UnalteredCopies
from federation.rooms.receive.unverified_events import UnverifiedStateEvents
from federation.rooms.rejoins import UnacknowledgedLeaves
from federation.rooms.resolve import StateResolver
from federation.rooms.state_effects import StoredEffects
from homeserver.wiring.federation_peers import FederationPeerParts
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
        *,
        base: Foundation,
        peers: FederationPeerParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        classify: Classify,
    ) -> None:
        database, clock, now_ms = base.database, base.clock, base.now_ms
        engine, policy_servers = room_engine.engine, room_engine.policy_servers
        self.identity = identity = base.identity
        store = EventStore(database)
        self.resolver = StateResolver(
            database=database, trees=rooms.trees, chains=rooms.chains, events=rooms.events
        )
        self.persister = persister = EventPersister(
            database=database,
            engine=engine,
            events=rooms.events,
            resolver=self.resolver,
            writer=rooms.writer,
            identity=identity,
            classify=classify,
            now_ms=now_ms,
        )
        self.remote_events = EventClient(requests=peers.requests, clock=clock)
        self.state_slots = LargeResponseSlots(
            clock=clock, short_bytes=MAX_SHORT_STATE_BYTES, slots=STATE_SLOTS
        )
        unaltered_copies = UnalteredCopies(
            remote=self.remote_events,
            servers=rooms.servers,
            policy=peers.policy,
            own_name=identity.server_name,
            seconds=clock.seconds,
        )
        check_services = CheckServices(
            rooms.events,
            self.resolver,
            peers.keyring.get_signers,
            policy_servers.is_approved,
            policy_servers.approve_many,
            peers.keyring.prefetch,
            peers.keyring.lacks_keys_for,
            unaltered_copies.find_all,
        )
        self.check_services = check_services
        content_restorer = ContentRestorer(
            database=database, engine=engine, events=rooms.events, identity=identity, now_ms=now_ms
        )
        outliers = Outliers(
            database=database,
            events=rooms.events,
            store=store,
            persister=persister,
            writer=rooms.writer,
            services=check_services,
            content_restorer=content_restorer,
            now_ms=now_ms,
        )
        self.imports = StateImports(outliers=outliers, store=store, clock=clock)
        self.effects = StoredEffects(store=store, identity=identity)
        self.unverified_events = UnverifiedStateEvents(
            database=database,
            store=UnverifiedEventStore(database),
            writer=UnverifiedEventWriter(rooms.trees),
            engine=engine,
            rooms=rooms.store,
            events=rooms.events,
            outliers=outliers,
            resolver=self.resolver,
            identity=identity,
            clock=clock,
        )
        self.receiver = Receiver(
            engine=engine,
            events=rooms.events,
            store=store,
            resolver=self.resolver,
            persister=persister,
            outliers=outliers,
            services=check_services,
            access=room_engine.access,
            unverified=self.unverified_events,
            content_restorer=content_restorer,
        )
        self.unacknowledged_leaves = UnacknowledgedLeaves(
            events=rooms.events, resolver=self.resolver, identity=identity
        )
        self.join_importer = JoinImporter(
            database=database,
            engine=engine,
            rooms=rooms.store,
            events=rooms.events,
            trees=rooms.trees,
            memberships=rooms.membership_store,
            imports=self.imports,
            effects=self.effects,
            resolver=self.resolver,
            unacknowledged_leaves=self.unacknowledged_leaves,
            partial=PartialRoomStore(database),
            writer=rooms.writer,
            identity=identity,
            services=check_services,
            now_ms=now_ms,
            first_attempt=self.unverified_events.schedule_first_attempt,
        )
