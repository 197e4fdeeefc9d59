"""Puts together what goes out to other servers, and what is kept of their users' devices."""

from twisted.internet.interfaces import IReactorTime

from federation.own_devices import OwnDevices
from federation.remote.transactions import Transactions
from federation.sender.contents import Contents
from federation.sender.deliveries import Deliveries
from federation.sender.heard import HeardPeers
from federation.sender.sender import Sender
from homeserver.assembly.accounts import AccountParts
from homeserver.assembly.federation import FederationParts
from homeserver.assembly.rooms import RoomParts
from homeserver.services.secret_text import RandomBytes
from storage.database import Database
from storage.destinations import DestinationStore
from storage.device_list_log import DeviceListLog
from storage.outgoing_to_device import OutgoingToDeviceStore


class FederationOutParts:
    """The sender and what feeds it. What is public is for the other parts and for the router."""

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        random: RandomBytes,
        accounts: AccountParts,
        rooms: RoomParts,
        federation: FederationParts,
    ) -> None:
        identity, now_ms = federation.identity, rooms.now_ms
        store, log = DestinationStore(database), DeviceListLog(database)
        self.outgoing_store = OutgoingToDeviceStore(database)
        self.own_devices = OwnDevices(accounts.device_key_store, rooms.cross_signing_store, log, identity)
        contents = Contents(
            rooms.store,
            rooms.engine,
            rooms.events,
            rooms.servers,
            store,
            self.outgoing_store,
            self.own_devices,
            now_ms,
        )
        self.deliveries = Deliveries(
            clock,
            database,
            store,
            self.outgoing_store,
            contents,
            Transactions(federation.requests, identity),
            federation.policy,
            now_ms,
        )
        self.sender = Sender(
            clock,
            database.streams,
            store,
            self.outgoing_store,
            log,
            rooms.events,
            rooms.servers,
            self.deliveries,
            identity,
            federation.policy,
            now_ms,
            holder=random(16).hex(),
            is_alone=database.engine.name == "sqlite",
        )
        self.signatures = HeardPeers(federation.signed_requests, self.sender)
