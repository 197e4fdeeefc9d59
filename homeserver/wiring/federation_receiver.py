"""Wires incoming federation: transactions, missing events, backfill, completion of partial-state
rooms. Also wires the service that gives other servers events and states of rooms."""

from collections.abc import Sequence

from federation.receiver.edus import EduReceivers
from federation.receiver.transactions import TransactionReceiver
from federation.remote.events import LIST_SLOTS, MAX_SHORT_LIST_BYTES
from federation.remote.large_responses import LargeResponseSlots
from federation.rooms.history.backfill import Backfill
from federation.rooms.history.history_refetch import HistoryRefetch
from federation.rooms.history.remote_timestamps import RemoteTimestampLookup
from federation.rooms.joins.out_of_room_updates import OutOfRoomUpdates
from federation.rooms.partial_state.completion import RoomCompletion
from federation.rooms.partial_state.completion_stores import CompletionStores
from federation.rooms.partial_state.late_notifications import LateNotifications
from federation.rooms.partial_state.recheck import Recheck
from federation.rooms.partial_state.state_sources import StateSources
from federation.rooms.receive.inbox import Inbox
from federation.rooms.receive.missing_events import MissingEvents
from federation.rooms.receive.remote_states import RemoteStates
from federation.rooms.receive.room_participants import RoomParticipants
from federation.rooms.resolve import StateResolver
from federation.rooms.serving.rooms import ServedRooms, TransactionForm
from federation.rooms.serving.server_visibility import ServerVisibility
from federation.rooms.state_audit import NAME as AUDIT
from federation.rooms.state_audit import StateAudit
from homeserver.cluster.jobs import Job
from homeserver.observe.federation import AuditMetrics, FederationMetrics
from homeserver.wiring.federation import FederationParts
from homeserver.wiring.federation_peers import FederationPeerParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from storage.events.events import EventStore
from storage.events.timelines import TimelineStore
from storage.federation.inbox import InboxStore
from storage.maintenance.state_audit import StateAuditStore
from storage.partial_state.completion import StateCompletion
from storage.rooms.partial_rooms import PartialRoomStore
from storage.rooms.served_states import ServedStateReader


class FederationReceiverParts:
    """Receives transactions, fetches missing events, and serves rooms to other servers. Public
    attributes are for the other parts and the router."""

    def __init__(
        self,
        *,
        base: Foundation,
        peers: FederationPeerParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        history: RoomHistoryParts,
        federation: FederationParts,
        edus: EduReceivers,
    ) -> None:
        clock, database, registry = base.clock, base.database, base.registry
        engine = room_engine.engine
        store = EventStore(database)
        metrics = FederationMetrics(registry)
        self.remote = federation.remote_events
        lists = LargeResponseSlots(clock=clock, short_bytes=MAX_SHORT_LIST_BYTES, slots=LIST_SLOTS)
        self.states = RemoteStates(
            receiver=federation.receiver,
            imports=federation.imports,
            store=store,
            remote=self.remote,
            lists=lists,
            states=federation.state_slots,
            clock=clock,
        )
        self.missing = MissingEvents(
            engine=engine,
            events=rooms.events,
            receiver=federation.receiver,
            states=self.states,
            unverified=federation.unverified_events,
            remote=self.remote,
            servers=rooms.servers,
            policy=peers.policy,
            find_refused=room_engine.policy_servers.find_refused,
            identity=federation.identity,
            timelines=TimelineStore(database),
            clock=clock,
        )
        self.times = RemoteTimestampLookup(
            events=rooms.events, missing=self.missing, remote=self.remote, seconds=clock.seconds
        )
        self.participants = RoomParticipants(
            servers=rooms.servers,
            memberships=rooms.membership_store,
            events=rooms.events,
            unverified=federation.unverified_events,
            own_name=federation.identity.server_name,
        )
        self.inbox = Inbox(
            store=InboxStore(database=database),
            rooms=rooms.store,
            engine=engine,
            missing=self.missing,
            participants=self.participants,
            clock=clock,
            observer=metrics,
        )
        completion = StateCompletion(trees=rooms.trees, chains=rooms.chains)
        late_notifications = LateNotifications(
            persister=federation.persister,
            resolver=federation.resolver,
            memberships=rooms.memberships,
            store=rooms.membership_store,
        )
        self.completions = RoomCompletion(
            stores=CompletionStores(
                database,
                rooms.store,
                PartialRoomStore(database),
                rooms.membership_store,
                rooms.trees,
                rooms.writer,
                completion,
            ),
            engine=engine,
            events=rooms.events,
            memberships=rooms.memberships,
            sources=StateSources(servers=rooms.servers, policy=peers.policy, now_ms=base.now_ms),
            partial=rooms.partial,
            states=self.states,
            imports=federation.imports,
            unverified=federation.unverified_events,
            recheck=Recheck(
                database=database,
                store=PartialRoomStore(database),
                events=rooms.events,
                resolver=federation.resolver,
                writer=completion,
                services=federation.check_services,
                persister=federation.persister,
                unverified=federation.unverified_events,
                late_notifications=late_notifications,
                timelines=rooms.timelines,
                unacknowledged_leaves=federation.unacknowledged_leaves,
            ),
            resolver=federation.resolver,
            effects=federation.effects,
            inbox=self.inbox,
            identity=federation.identity,
            streams=database.streams,
            clock=clock,
            observer=metrics,
        )
        self.out_of_room_updates = OutOfRoomUpdates(
            out_of_room=rooms.out_of_room,
            memberships=rooms.memberships,
            get_signers=peers.keyring.get_signers,
            identity=federation.identity,
        )
        self.transactions = TransactionReceiver(
            engine=engine,
            memberships=rooms.memberships,
            receiver=federation.receiver,
            inbox=self.inbox,
            participants=self.participants,
            edus=edus,
            outside=self.out_of_room_updates,
            policy=peers.policy,
            observer=metrics,
            clock=clock,
        )
        history_refetch = HistoryRefetch(
            database=database,
            event_store=store,
            events=rooms.events,
            persister=federation.persister,
        )
        self.backfill = Backfill(
            timelines=TimelineStore(database),
            servers=rooms.servers,
            missing=self.missing,
            remote=self.remote,
            refetch=history_refetch,
            clock=clock,
        )
        self.form = TransactionForm(identity=federation.identity, now_ms=base.now_ms)
        self.served = ServedRooms(
            events=rooms.events,
            store=store,
            states=ServedStateReader(database=database, trees=rooms.trees, chains=rooms.chains),
            chains=rooms.chains,
            timelines=TimelineStore(database),
            access=room_engine.access,
            visibility=ServerVisibility(
                trees=rooms.trees,
                events=rooms.events,
                membership_store=rooms.membership_store,
                servers=rooms.servers,
                retention=history.retention,
                erased=history.erased,
            ),
        )
        self.audit = StateAudit(
            store=StateAuditStore(database),
            rooms=rooms.store,
            engine=engine,
            events=rooms.events,
            resolver=StateResolver(
                database=database,
                trees=rooms.trees,
                chains=rooms.chains,
                events=rooms.events,
                capacity=0,
            ),
            observer=AuditMetrics(registry),
        )

    def jobs(self) -> list[Job]:
        """Return the background jobs."""
        return [Job(AUDIT, self.audit.do_step, 600.0)]

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.form, self.served, self.transactions)
