"""Wires the services for end-to-end encryption."""

from collections.abc import Sequence

from federation.peers.identity import ServerIdentity
from federation.peers.policy import Policy
from homeserver.cluster.jobs import Job
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.devices.device_cache import DevicesOfUsers
from homeserver.services.encryption.cross_signing import CrossSigning
from homeserver.services.encryption.dehydrated_devices import DehydratedDevices
from homeserver.services.encryption.key_backups import KeyBackups
from homeserver.services.encryption.to_device import ToDevice
from homeserver.services.login.confirmation import AccountConfirmation
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.rooms import RoomParts
from storage.encryption.key_backups import KeyBackupStore
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.engine.database import Database


class EncryptionParts:
    """Cross-signing, dehydrated devices, key backups, to-device messages. Public attributes are for
    the other parts and the router."""

    def __init__(
        self,
        database: Database,
        limiter: RateLimiter,
        identity: ServerIdentity,
        policy: Policy,
        accounts: AccountParts,
        confirmation: AccountConfirmation,
        rooms: RoomParts,
    ) -> None:
        self.cross_signing = CrossSigning(
            database,
            rooms.cross_signing_store,
            rooms.published_keys,
            accounts.device_store,
            confirmation,
            accounts.resets,
            accounts.application_passwords,
        )
        self.dehydrated_devices = DehydratedDevices(
            database,
            accounts.dehydrated_store,
            accounts.device_store,
            rooms.device_keys,
            accounts.to_device_store,
            accounts.sessions,
            rooms.now_ms,
        )
        self.backups = KeyBackups(KeyBackupStore(database), limiter)
        self.outgoing_store = OutgoingToDeviceStore(database)
        self.device_cache = DevicesOfUsers(database.streams)
        self.to_device = ToDevice(
            database,
            accounts.to_device_store,
            self.outgoing_store,
            identity,
            policy,
            rooms.servers,
            self.device_cache,
            limiter,
            rooms.now_ms,
        )

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (Job("sweep_key_backups", self.backups.do_sweep, 60.0),)
