"""Wires outgoing federation, and the device lists of remote users."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry
from twisted.internet.interfaces import IReactorTime

from federation.devices.local_devices import OwnDevices
from federation.peers.backoff_schedule import BackoffSchedule
from federation.remote.keys import RemoteKeys
from federation.remote.transactions import Transactions
from federation.sender.deliveries import Deliveries
from federation.sender.peer_activity import HeardPeers
from federation.sender.policy_unblocked import Greetings
from federation.sender.sender import Sender
from federation.sender.transaction_contents import Contents
from homeserver.api.limits import Limit
from homeserver.cluster.jobs import Job
from homeserver.config.outgoing import Peering
from homeserver.http.rate_limits import RateLimiter
from homeserver.observe.sender import SenderMetrics
from homeserver.services.encryption.key_queries import EveryonesKeys
from homeserver.services.encryption.remote_devices import RemoteDevices
from homeserver.services.ephemeral.edu_receivers import ReceivedNotices
from homeserver.services.ephemeral.edu_sender import ToldNotices
from homeserver.services.federation.destinations import Destinations
from homeserver.services.tokens.secret_tokens import RandomBytes
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.encryption import EncryptionParts
from homeserver.wiring.federation import FederationParts
from homeserver.wiring.rooms import RoomParts
from storage.cluster.node_lease import NodeLease
from storage.devices.device_list_log import DeviceListLog
from storage.encryption.remote_devices import RemoteDeviceStore
from storage.engine.database import Database
from storage.federation.destination_lists import DestinationListStore
from storage.federation.destinations import LEASE, DestinationStore
from storage.federation.forgotten_destinations import ForgottenDestinationStore
from storage.rooms.early_receipts import EarlyReceiptStore
from storage.rooms.room_servers import RoomServerStore


class FederationOutParts:
    """The sender and its sources. Public attributes are for the other parts and the router."""

    def __init__(
        self,
        peering: Peering,
        clock: IReactorTime,
        database: Database,
        limiter: RateLimiter,
        random: RandomBytes,
        accounts: AccountParts,
        rooms: RoomParts,
        encryption: EncryptionParts,
        federation: FederationParts,
        registry: CollectorRegistry,
    ) -> None:
        identity, now_ms = federation.identity, rooms.now_ms
        store, log = DestinationStore(database), DeviceListLog(database)
        outgoing = encryption.outgoing_store
        self.own_devices = OwnDevices(
            accounts.device_key_store,
            rooms.published_keys,
            log,
            identity,
            clock,
            now_ms,
            lambda origin: limiter.check_only(Limit.CLAIMED_KEYS, origin),
            lambda origin, keys: limiter.count(Limit.CLAIMED_KEYS, origin, cost=keys),
        )
        contents = Contents(
            rooms.store,
            rooms.engine,
            rooms.events,
            rooms.servers,
            store,
            outgoing,
            self.own_devices,
            rooms.sticky_events,
            rooms.lifetimes,
            identity,
            now_ms,
        )
        transactions = Transactions(federation.requests, identity)
        self.deliveries = Deliveries(
            clock,
            database,
            store,
            outgoing,
            contents,
            transactions,
            federation.policy,
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
            federation.policy,
            federation.edge.silences,
            now_ms,
        )
        self.greetings = Greetings(
            federation.policy, RoomServerStore(database), transactions, clock
        )
        self.destinations = Destinations(
            DestinationListStore(database),
            ForgottenDestinationStore(database),
            self.sender,
            federation.policy,
            now_ms,
        )
        self.signatures = HeardPeers(federation.signed_requests, self.sender)
        SenderMetrics(registry, self.deliveries.get_figures)
        self.remote_devices = RemoteDevices(
            clock,
            RemoteDeviceStore(database),
            RemoteKeys(federation.requests),
            rooms.memberships,
            rooms.membership_store,
            self.sender,
            identity.is_local,
        )
        self.everyones_keys = EveryonesKeys(
            clock,
            self.own_devices,
            rooms.published_keys,
            self.remote_devices,
            identity,
            rooms.servers,
            limiter,
        )
        self._to_device = encryption.to_device
        told = ToldNotices(self.sender, rooms.store)
        rooms.typing.subscribe(told.hear_typing)
        rooms.presence.subscribe(told.hear_presence)
        received = ReceivedNotices(
            rooms.store,
            rooms.events,
            rooms.memberships,
            rooms.membership_store,
            rooms.typing,
            rooms.receipt_store,
            EarlyReceiptStore(database),
            rooms.presence,
            now_ms,
        )
        edus = federation.edus
        edus.register("m.typing", received.receive_typing)
        edus.register("m.receipt", received.receive_receipts)
        edus.register("m.presence", received.receive_presence)
        edus.register("m.direct_to_device", encryption.to_device.receive)
        edus.register("m.device_list_update", self.remote_devices.receive_update)
        edus.register("m.signing_key_update", self.remote_devices.receive_signing_key)
        edus.register("org.matrix.signing_key_update", self.remote_devices.receive_signing_key)

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
