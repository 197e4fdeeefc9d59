"""Wires outgoing federation, the device lists of remote users, and the handlers of EDUs."""

from collections.abc import Sequence

from federation.devices.local_devices import OwnDevices
from federation.peers.backoff_schedule import BackoffSchedule
from federation.receiver.edus import EduReceivers
from federation.remote.keys import RemoteKeys
from federation.remote.transactions import Transactions
from federation.sender.deliveries import Deliveries
from federation.sender.peer_activity import HeardPeers
from federation.sender.policy_unblocked import Greetings
from federation.sender.sender import Sender
from federation.sender.transaction_contents import Contents
from homeserver.api.limits import Limit
from homeserver.cluster.jobs import Job
from homeserver.observe.sender import SenderMetrics
from homeserver.services.encryption.key_queries import EveryonesKeys
from homeserver.services.encryption.remote_devices import RemoteDevices
from homeserver.services.ephemeral.edu_receivers import ReceivedNotices
from homeserver.services.ephemeral.edu_sender import ToldNotices
from homeserver.services.federation.destinations import Destinations
from homeserver.services.tokens.secret_tokens import RandomBytes
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.devices import DeviceParts
from homeserver.wiring.federation_peers import EdgeParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.presence import WhoIsThere
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from storage.cluster.node_lease import NodeLease
from storage.devices.device_list_log import DeviceListLog
from storage.encryption.remote_devices import RemoteDeviceStore
from storage.federation.destination_lists import DestinationListStore
from storage.federation.destinations import LEASE, DestinationStore
from storage.federation.forgotten_destinations import ForgottenDestinationStore
from storage.rooms.early_receipts import EarlyReceiptStore
from storage.rooms.receipts import ReceiptStore
from storage.rooms.room_servers import RoomServerStore


class FederationOutParts:
    """The sender and its sources. Public attributes are for the other parts and the router."""

    def __init__(
        self,
        base: Foundation,
        random: RandomBytes,
        accounts: AccountParts,
        edge: EdgeParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        history: RoomHistoryParts,
        presence: WhoIsThere,
        devices: DeviceParts,
    ) -> None:
        clock, database, limiter = base.clock, base.database, base.limiter
        identity, now_ms = base.identity, base.now_ms
        peering = base.config.federation.federation
        store, log = DestinationStore(database), DeviceListLog(database)
        outgoing = devices.outgoing_store
        self.own_devices = OwnDevices(
            accounts.stores.device_keys,
            devices.published_keys,
            log,
            identity,
            clock,
            now_ms,
            lambda origin: limiter.check_only(Limit.CLAIMED_KEYS, origin),
            lambda origin, keys: limiter.count(Limit.CLAIMED_KEYS, origin, cost=keys),
        )
        contents = Contents(
            rooms.store,
            room_engine.engine,
            rooms.events,
            rooms.servers,
            store,
            outgoing,
            self.own_devices,
            rooms.sticky_events,
            history.lifetimes,
            identity,
            now_ms,
        )
        transactions = Transactions(edge.requests, identity)
        self.deliveries = Deliveries(
            clock,
            database,
            store,
            outgoing,
            contents,
            transactions,
            edge.policy,
            now_ms,
            BackoffSchedule(
                peering.destination_min_retry_interval,
                peering.destination_max_retry_interval,
                peering.destination_retry_multiplier,
            ),
        )
        self.sender = Sender(
            clock,
            database.streams,
            NodeLease(database, LEASE, random(16).hex(), accounts.get_node),
            store,
            outgoing,
            log,
            rooms.events,
            rooms.servers,
            rooms.sticky_events,
            self.deliveries,
            identity,
            edge.policy,
            edge.silences,
            now_ms,
        )
        self.greetings = Greetings(edge.policy, RoomServerStore(database), transactions, clock)
        self.destinations = Destinations(
            DestinationListStore(database),
            ForgottenDestinationStore(database),
            self.sender,
            edge.policy,
            now_ms,
        )
        self.signatures = HeardPeers(edge.signed_requests, self.sender)
        SenderMetrics(base.registry, self.deliveries.get_figures)
        self.remote_devices = RemoteDevices(
            clock,
            RemoteDeviceStore(database),
            RemoteKeys(edge.requests),
            rooms.memberships,
            rooms.membership_store,
            self.sender,
            identity.is_local,
        )
        self.everyones_keys = EveryonesKeys(
            clock,
            self.own_devices,
            devices.published_keys,
            self.remote_devices,
            identity,
            rooms.servers,
            limiter,
        )
        self._to_device = devices.to_device
        told = ToldNotices(self.sender, rooms.store)
        presence.typing.subscribe(told.hear_typing)
        presence.presence.subscribe(told.hear_presence)
        received = ReceivedNotices(
            rooms.store,
            rooms.events,
            rooms.memberships,
            rooms.membership_store,
            presence.typing,
            ReceiptStore(database),
            EarlyReceiptStore(database),
            presence.presence,
            now_ms,
        )
        self.edus = EduReceivers(
            room_engine.access,
            {
                "m.typing": received.receive_typing,
                "m.receipt": received.receive_receipts,
                "m.presence": received.receive_presence,
                "m.direct_to_device": devices.to_device.receive,
                "m.device_list_update": self.remote_devices.receive_update,
                "m.signing_key_update": self.remote_devices.receive_signing_key,
                "org.matrix.signing_key_update": self.remote_devices.receive_signing_key,
            },
        )

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            Job("sweep_to_device", self._to_device.do_sweep, 60.0),
            Job("forget_received_to_device", self._to_device.forget_received, 3600.0),
            Job("expire_outgoing_to_device", self.destinations.do_expire, 3600.0),
            Job("forget_destinations", self.destinations.do_forget, 3600.0),
            Job("fetch_stale_device_lists", self.remote_devices.do_resync, 60.0),
            Job("sweep_device_lists", self.remote_devices.do_sweep, 3600.0),
        )
