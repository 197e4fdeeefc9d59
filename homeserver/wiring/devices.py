"""Wires the parts of end-to-end encryption that concern devices: device keys, device lists and
to-device messages."""

from collections.abc import Mapping, Sequence

from federation.devices.published_keys import PublishedKeyCache
from federation.peers.federation_policy import FederationPolicy
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
        *,
        base: Foundation,
        policy: FederationPolicy,
        accounts: AccountParts,
        rooms: RoomDataParts,
        room_engine: RoomEngineParts,
    ) -> None:
        database, streams, sizes = base.database, base.database.streams, base.sizes
        self.cross_signing_store = CrossSigningStore(database)
        self.outgoing_store = OutgoingToDeviceStore(database=database)
        self.published_keys = PublishedKeyCache(
            store=PublishedKeyStore(database),
            streams=streams,
            show=build_public_keys,
            capacity=sizes.devices,
        )
        self.key_counts = OneTimeKeyCounts(
            streams=streams, keys=accounts.stores.device_keys, capacity=sizes.users
        )
        self.device_keys = DeviceKeys(
            database=database,
            keys=accounts.stores.device_keys,
            counts=self.key_counts,
            limiter=base.limiter,
            now_ms=base.now_ms,
        )
        self._encrypted_rooms = EncryptedRoomCache(
            summaries=RoomSummaryStore(database), streams=streams, capacity=sizes.rooms
        )
        self.device_lists = DeviceLists(
            devices=accounts.stores.devices,
            cross_signing=self.cross_signing_store,
            engine=room_engine.engine,
            rooms=rooms.store,
            memberships=rooms.memberships,
            membership_store=rooms.membership_store,
            encrypted=self._encrypted_rooms,
            states=rooms.current_states,
            past_memberships=rooms.past_memberships,
            recent=rooms.recent,
            events=rooms.events,
            partial=rooms.partial,
        )
        self._device_cache = DeviceCache(streams=streams)
        self.to_device = ToDevice(
            database=database,
            store=accounts.stores.to_device,
            outgoing=self.outgoing_store,
            identity=base.identity,
            policy=policy,
            servers=rooms.servers,
            devices=self._device_cache,
            limiter=base.limiter,
            now_ms=base.now_ms,
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

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.device_keys, self.device_lists, self.to_device)
