"""Wires devices in end-to-end encryption: their keys, the lists of them, and the messages
to them."""

from collections.abc import Mapping

from federation.devices.published_keys import PublishedKeyCache
from federation.peers.policy import FederationPolicy
from homeserver.observe.caches import CountedCache, UnsizedCache
from homeserver.services.devices.device_cache import DeviceCache
from homeserver.services.encryption.device_keys import DeviceKeys, build_public_keys
from homeserver.services.encryption.device_lists import DeviceLists
from homeserver.services.encryption.encrypted_rooms import EncryptedRoomCache
from homeserver.services.encryption.one_time_key_counts import OneTimeKeyCounts
from homeserver.services.encryption.to_device import ToDevice
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.room_data import RoomDataParts
from homeserver.wiring.room_engine import RoomEngineParts
from storage.encryption.cross_signing import CrossSigningStore
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.encryption.published_keys import PublishedKeyStore
from storage.rooms.summaries import RoomSummaryStore


class DeviceParts:
    """Keys of devices, device lists, to-device messages."""

    def __init__(
        self,
        base: Foundation,
        policy: FederationPolicy,
        accounts: AccountParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
    ) -> None:
        database, streams, sizes = base.database, base.database.streams, base.sizes
        self.cross_signing_store = CrossSigningStore(database)
        self.outgoing_store = OutgoingToDeviceStore(database)
        self.published_keys = PublishedKeyCache(
            PublishedKeyStore(database), streams, build_public_keys, capacity=sizes.devices
        )
        self.key_counts = OneTimeKeyCounts(
            streams, accounts.stores.device_keys, capacity=sizes.users
        )
        self.device_keys = DeviceKeys(
            database, accounts.stores.device_keys, self.key_counts, base.limiter, base.now_ms
        )
        self._encrypted_rooms = EncryptedRoomCache(
            RoomSummaryStore(database), streams, capacity=sizes.rooms
        )
        self.device_lists = DeviceLists(
            accounts.stores.devices,
            self.cross_signing_store,
            room_engine.engine,
            rooms.store,
            rooms.memberships,
            rooms.membership_store,
            self._encrypted_rooms,
            rooms.current_states,
            rooms.past,
            rooms.recent,
            rooms.events,
            rooms.partial,
        )
        self._device_cache = DeviceCache(streams)
        self.to_device = ToDevice(
            database,
            accounts.stores.to_device,
            self.outgoing_store,
            base.identity,
            policy,
            rooms.servers,
            self._device_cache,
            base.limiter,
            base.now_ms,
        )

    @property
    def caches(self) -> Mapping[str, CountedCache]:
        """Return the caches that have metrics."""
        return {
            "devices": UnsizedCache(self._device_cache.cache),
            "encrypted_rooms": UnsizedCache(self._encrypted_rooms.cache),
            "key_counts": UnsizedCache(self.key_counts.cache),
            "published_keys": UnsizedCache(self.published_keys.cache),
        }
