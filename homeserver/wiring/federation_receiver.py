"""Wires incoming federation: transactions, events with missing predecessors, and the queries of
other servers."""

from federation.receiver.edus import EduReceivers
from federation.receiver.transactions import TransactionReceiver
from federation.remote.events import LIST_SLOTS, MAX_SHORT_LIST_BYTES
from federation.remote.large_responses import LargeResponseSlots
from federation.rooms.history.backfill import Backfill
from federation.rooms.history.history_refetch import HistoryRefetch
from federation.rooms.history.remote_timestamps import RemoteTimestampLookup
from federation.rooms.joins.out_of_room_updates import OutOfRoomUpdates
from federation.rooms.partial_state.completion import RoomCompletion
from federation.rooms.partial_state.late_notifications import LateNotifications
from federation.rooms.partial_state.recheck import Recheck
from federation.rooms.partial_state.room_tables import RoomTables
from federation.rooms.partial_state.state_sources import StateSources
from federation.rooms.receive.inbox import Inbox
from federation.rooms.receive.missing_events import MissingEvents
from federation.rooms.receive.participants import RoomParticipants
from federation.rooms.receive.remote_states import RemoteStates
from federation.rooms.resolve import StateResolver
from federation.rooms.serving.rooms import ServedRooms, TransactionForm
from federation.rooms.serving.server_visibility import ServerVisibility
from federation.rooms.state_audit import NAME as AUDIT
from federation.rooms.state_audit import StateAudit
from homeserver.cluster.jobs import Job
from homeserver.observe.federation import AuditMetrics, FederationMetrics
from homeserver.wiring.federation import FederationParts
from homeserver.wiring.federation_peers import EdgeParts
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


class IncomingParts:
    """Processes transactions and queries of other servers. Public attributes are for the other
    parts and the router."""

    def __init__(
        self,
        base: Foundation,
        edge: EdgeParts,
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
        lists = LargeResponseSlots(clock, short_bytes=MAX_SHORT_LIST_BYTES, slots=LIST_SLOTS)
        self.states = RemoteStates(
            federation.receiver,
            federation.imports,
            store,
            self.remote,
            lists,
            federation.long_states,
            clock,
        )
        self.missing = MissingEvents(
            engine,
            rooms.events,
            federation.receiver,
            self.states,
            federation.unproved,
            self.remote,
            rooms.servers,
            edge.policy,
            room_engine.policy_servers.find_refused,
            federation.identity,
            TimelineStore(database),
            clock,
        )
        self.times = RemoteTimestampLookup(rooms.events, self.missing, self.remote, clock.seconds)
        self.insiders = RoomParticipants(
            rooms.servers,
            rooms.membership_store,
            rooms.events,
            federation.unproved,
            federation.identity.server_name,
        )
        self.inbox = Inbox(
            InboxStore(database),
            rooms.store,
            engine,
            self.missing,
            self.insiders,
            clock,
            metrics,
        )
        completion = StateCompletion(rooms.trees, rooms.chains)
        hearing = LateNotifications(
            federation.placements, federation.resolver, rooms.memberships, rooms.membership_store
        )
        self.completions = RoomCompletion(
            RoomTables(
                database,
                rooms.store,
                PartialRoomStore(database),
                rooms.membership_store,
                rooms.trees,
                rooms.writer,
                completion,
            ),
            engine,
            rooms.events,
            rooms.memberships,
            StateSources(rooms.servers, edge.policy, base.now_ms),
            rooms.partial,
            self.states,
            federation.imports,
            federation.unproved,
            Recheck(
                database,
                PartialRoomStore(database),
                rooms.events,
                federation.resolver,
                completion,
                federation.questions,
                federation.placements,
                federation.unproved,
                hearing,
                rooms.timelines,
                federation.unheard,
            ),
            federation.resolver,
            federation.effects,
            self.inbox,
            federation.identity,
            database.streams,
            clock,
            metrics,
        )
        self.outside = OutOfRoomUpdates(
            rooms.outside,
            rooms.memberships,
            edge.keyring.get_signers,
            federation.identity,
        )
        self.transactions = TransactionReceiver(
            engine,
            rooms.memberships,
            federation.receiver,
            self.inbox,
            self.insiders,
            edus,
            self.outside,
            edge.policy,
            metrics,
            clock,
        )
        regaining = HistoryRefetch(database, store, rooms.events, federation.placements)
        self.backfill = Backfill(
            TimelineStore(database), rooms.servers, self.missing, self.remote, regaining, clock
        )
        self.form = TransactionForm(federation.identity, base.now_ms)
        self.served = ServedRooms(
            rooms.events,
            store,
            ServedStateReader(database, rooms.trees, rooms.chains),
            rooms.chains,
            TimelineStore(database),
            room_engine.access,
            ServerVisibility(
                rooms.trees,
                rooms.events,
                rooms.membership_store,
                rooms.servers,
                history.lifetimes,
                history.erased,
            ),
        )
        self.audit = StateAudit(
            StateAuditStore(database),
            rooms.store,
            engine,
            rooms.events,
            StateResolver(database, rooms.trees, rooms.chains, rooms.events, capacity=0),
            AuditMetrics(registry),
        )

    def jobs(self) -> list[Job]:
        """Return the background jobs."""
        return [Job(AUDIT, self.audit.do_step, 600.0)]
