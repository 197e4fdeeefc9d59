"""Puts together what has to do with end-to-end encryption."""

from collections.abc import Sequence

from federation.identity import ServerIdentity
from federation.policy import Policy
from homeserver.assembly.accounts import AccountParts
from homeserver.assembly.rooms import RoomParts
from homeserver.http.rate_limits import RateLimiter
from homeserver.jobs import Job
from homeserver.services.accounts import Accounts
from homeserver.services.cross_signing import CrossSigning
from homeserver.services.dehydrated_devices import DehydratedDevices
from homeserver.services.key_backups import KeyBackups
from homeserver.services.known_devices import DevicesOfUsers
from homeserver.services.to_device import ToDevice
from storage.database import Database
from storage.key_backups import KeyBackupStore
from storage.outgoing_to_device import OutgoingToDeviceStore


class EncryptionParts:
    """Keys, signatures, backups, messages to devices. What is public is for the router."""

    def __init__(
        self,
        database: Database,
        limiter: RateLimiter,
        identity: ServerIdentity,
        policy: Policy,
        accounts: AccountParts,
        people: Accounts,
        rooms: RoomParts,
    ) -> None:
        self.cross_signing = CrossSigning(
            database,
            rooms.cross_signing_store,
            rooms.published_keys,
            accounts.device_store,
            people,
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
        self.to_device = ToDevice(
            database,
            accounts.to_device_store,
            self.outgoing_store,
            identity,
            policy,
            rooms.servers,
            DevicesOfUsers(database.streams),
            limiter,
            rooms.now_ms,
        )

    def jobs(self) -> Sequence[Job]:
        """What is done unasked."""
        return (Job("sweep_key_backups", self.backups.do_sweep, 60.0),)
