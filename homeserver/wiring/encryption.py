"""Wires cross-signing, key backups and dehydrated devices."""

from collections.abc import Sequence

from homeserver.cluster.jobs import Job
from homeserver.services.encryption.cross_signing import CrossSigning
from homeserver.services.encryption.dehydrated_devices import DehydratedDevices
from homeserver.services.encryption.key_backups import KeyBackups
from homeserver.services.login.confirmation import AccountConfirmation
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.devices import DeviceParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.login import LoginParts
from storage.encryption.key_backups import KeyBackupStore


class EncryptionParts:
    """Keys that need a confirmation by the user to change. Public attributes are for the router."""

    def __init__(
        self,
        base: Foundation,
        accounts: AccountParts,
        login: LoginParts,
        confirmation: AccountConfirmation,
        devices: DeviceParts,
    ) -> None:
        self.cross_signing = CrossSigning(
            base.database,
            devices.cross_signing_store,
            devices.published_keys,
            accounts.stores.devices,
            confirmation,
            login.resets,
            accounts.application_passwords,
        )
        self.dehydrated_devices = DehydratedDevices(
            base.database,
            accounts.stores.dehydrated_devices,
            accounts.stores.devices,
            devices.device_keys,
            accounts.stores.to_device,
            accounts.sessions,
            base.now_ms,
        )
        self.backups = KeyBackups(KeyBackupStore(base.database), base.limiter)

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (Job("sweep_key_backups", self.backups.do_sweep, 60.0),)
