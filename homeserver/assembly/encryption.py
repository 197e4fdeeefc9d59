"""Puts together what has to do with end-to-end encryption."""

from collections.abc import Callable

from federation.identity import ServerIdentity
from federation.policy import Policy
from homeserver.assembly.accounts import AccountParts
from homeserver.services.accounts import Accounts
from homeserver.services.cross_signing import CrossSigning
from homeserver.services.key_backups import KeyBackups
from homeserver.services.to_device import ToDevice
from storage.cross_signing import CrossSigningStore
from storage.database import Database
from storage.key_backups import KeyBackupStore
from storage.outgoing_to_device import OutgoingToDeviceStore


class EncryptionParts:
    """Keys, signatures, backups, messages to devices. What is public is for the router."""

    def __init__(
        self,
        database: Database,
        identity: ServerIdentity,
        policy: Policy,
        now_ms: Callable[[], int],
        accounts: AccountParts,
        people: Accounts,
        cross_signing: CrossSigningStore,
    ) -> None:
        self.cross_signing = CrossSigning(
            database, cross_signing, accounts.device_key_store, accounts.device_store, people
        )
        self.backups = KeyBackups(KeyBackupStore(database))
        self.outgoing_store = OutgoingToDeviceStore(database)
        self.to_device = ToDevice(
            database,
            accounts.to_device_store,
            accounts.device_store,
            self.outgoing_store,
            identity,
            policy,
            now_ms,
        )
