"""Wires outgoing federation, the device lists of remote users, and the handlers of EDUs."""

from collections.abc import Sequence

from federation.devices.local_devices import LocalDevices
from federation.peers.backoff_schedule import BackoffSchedule
from federation.receiver.edus import EduReceivers
from federation.remote.keys import DeviceKeyClient
from federation.remote.transactions import TransactionClient
from federation.sender.catch_up import CatchUp
from federation.sender.peer_activity import PeerActivityRecorder
from federation.sender.policy_unblocked import UnblockedServerNotifier
from federation.sender.sender import FederationSender
from federation.sender.transaction_builder import TransactionBuilder
from federation.sender.transaction_sender import TransactionSender
from homeserver.api.limits import Limit
from homeserver.cluster.jobs import Job
from homeserver.observe.sender import SenderMetrics
from homeserver.services.encryption.key_queries import KeyQueries
from homeserver.services.encryption.remote_devices import RemoteDevices
from homeserver.services.ephemeral.edu_receivers import EDUReceivers
from homeserver.services.ephemeral.edu_sender import EDUSender
from homeserver.services.federation.destinations import DestinationAdministration
from homeserver.services.tokens.secret_tokens import RandomBytes
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.devices import DeviceParts
from homeserver.wiring.federation_peers import FederationPeerParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.presence import PresenceParts
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from homeserver.wiring.room_history import RoomHistoryParts
from storage.cluster.node_lease import NodeLease
from storage.devices.device_list_log import DeviceListLog
from storage.encryption.remote_devices import RemoteDeviceStore
from storage.federation.destination_cleanup import DestinationCleanupStore
from storage.federation.destination_lists import DestinationListStore
from storage.federation.destinations import LEASE, DestinationStore
from storage.rooms.early_receipts import EarlyReceiptStore
from storage.rooms.receipts import ReceiptStore
from storage.rooms.room_servers import RoomServerStore


class FederationSenderParts:
    """The sender and its sources. Public attributes are for the other parts and the router."""

    def __init__(
        self,
        *,
        base: Foundation,
        random: RandomBytes,
        accounts: AccountParts,
        peers: FederationPeerParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
        history: RoomHistoryParts,
        presence: PresenceParts,
        devices: DeviceParts,
    ) -> None:
        clock, database, limiter = base.clock, base.database, base.limiter
        identity, now_ms = base.identity, base.now_ms
        peering = base.config.federation.federation
        store, log = DestinationStore(database), DeviceListLog(database)
        outgoing = devices.outgoing_store
        self.own_devices = LocalDevices(
            keys=accounts.stores.device_keys,
            published=devices.published_keys,
            log=log,
            identity=identity,
            clock=clock,
            now_ms=now_ms,
            check_claims=lambda origin: limiter.check_without_counting(
                Limit.KEY_CLAIM_OF_SERVER, origin
            ),
            count_claims=lambda origin, keys: limiter.count(
                Limit.KEY_CLAIM_OF_SERVER, origin, cost=keys
            ),
        )
        contents = TransactionBuilder(
            rooms=rooms.store,
            events=rooms.events,
            catch_up=CatchUp(
                rooms=rooms.store,
                engine=room_engine.engine,
                servers=rooms.servers,
                destinations=store,
                sticky=rooms.sticky_events,
                identity=identity,
            ),
            to_device=outgoing,
            devices=self.own_devices,
            lifetimes=history.retention,
            now_ms=now_ms,
        )
        transactions = TransactionClient(requests=peers.requests, identity=identity)
        self.deliveries = TransactionSender(
            clock=clock,
            database=database,
            store=store,
            to_device=outgoing,
            contents=contents,
            transactions=transactions,
            policy=peers.policy,
            now_ms=now_ms,
            schedule=BackoffSchedule(
                peering.destination_min_retry_interval,
                peering.destination_max_retry_interval,
                peering.destination_retry_multiplier,
            ),
        )
        self.sender = FederationSender(
            clock=clock,
            streams=database.streams,
            lease=NodeLease(
                database=database, name=LEASE, process=random(16).hex(), get_node=accounts.get_node
            ),
            store=store,
            to_device=outgoing,
            device_log=log,
            events=rooms.events,
            servers=rooms.servers,
            sticky=rooms.sticky_events,
            deliveries=self.deliveries,
            identity=identity,
            policy=peers.policy,
            backoff=peers.unresponsive_servers,
            now_ms=now_ms,
        )
        self.unblocked_notifier = UnblockedServerNotifier(
            policy=peers.policy,
            store=RoomServerStore(database),
            transactions=transactions,
            clock=clock,
        )
        self.destinations = DestinationAdministration(
            store=DestinationListStore(database),
            cleanup=DestinationCleanupStore(database),
            sender=self.sender,
            policy=peers.policy,
            now_ms=now_ms,
        )
        self.signatures = PeerActivityRecorder(checker=peers.signed_requests, sender=self.sender)
        SenderMetrics(registry=base.registry, read=self.deliveries.get_metrics)
        self.remote_devices = RemoteDevices(
            clock=clock,
            store=RemoteDeviceStore(database),
            remote=DeviceKeyClient(peers.requests),
            memberships=rooms.memberships,
            membership_store=rooms.membership_store,
            sender=self.sender,
            is_local=identity.is_local,
        )
        self.key_queries = KeyQueries(
            clock=clock,
            own_devices=self.own_devices,
            published=devices.published_keys,
            remote=self.remote_devices,
            identity=identity,
            servers=rooms.servers,
            limiter=limiter,
        )
        self._to_device = devices.to_device
        edu_sender = EDUSender(sender=self.sender, rooms=rooms.store)
        presence.typing.subscribe(edu_sender.send_typing)
        presence.presence.subscribe(edu_sender.send_presence)
        edu_receivers = EDUReceivers(
            rooms=rooms.store,
            events=rooms.events,
            memberships=rooms.memberships,
            membership_store=rooms.membership_store,
            typing=presence.typing,
            receipts=ReceiptStore(database),
            early_receipts=EarlyReceiptStore(database),
            presence=presence.presence,
            now_ms=now_ms,
        )
        self.edus = EduReceivers(
            access=room_engine.access,
            handlers={
                "m.typing": edu_receivers.receive_typing,
                "m.receipt": edu_receivers.receive_receipts,
                "m.presence": edu_receivers.receive_presence,
                "m.direct_to_device": devices.to_device.receive,
                "m.device_list_update": self.remote_devices.receive_device_list_update,
                "m.signing_key_update": self.remote_devices.receive_signing_key_update,
                "org.matrix.signing_key_update": self.remote_devices.receive_signing_key_update,
            },
        )

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (
            Job("sweep_to_device", self._to_device.do_sweep, 60.0),
            Job("delete_old_received_to_device", self._to_device.remove_old_received, 3600.0),
            Job("expire_outgoing_to_device", self.destinations.do_remove_expired, 3600.0),
            Job("delete_unused_destinations", self.destinations.do_remove_forgotten, 3600.0),
            Job("fetch_stale_device_lists", self.remote_devices.do_resync, 60.0),
            Job("sweep_device_lists", self.remote_devices.do_sweep, 3600.0),
        )

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.destinations, self.key_queries, self.own_devices)
