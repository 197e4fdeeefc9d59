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
    """Cross-signing, key backups and dehydrated devices. Public attributes are for the router."""

    def __init__(
        self,
        *,
        base: Foundation,
        accounts: AccountParts,
        login: LoginParts,
        confirmation: AccountConfirmation,
        devices: DeviceParts,
    ) -> None:
        self.cross_signing = CrossSigning(
            database=base.database,
            store=devices.cross_signing_store,
            published=devices.published_keys,
            devices=accounts.stores.devices,
            confirmation=confirmation,
            resets=login.resets,
            programs=accounts.application_passwords,
        )
        self.dehydrated_devices = DehydratedDevices(
            database=base.database,
            store=accounts.stores.dehydrated_devices,
            devices=accounts.stores.devices,
            keys=devices.device_keys,
            to_device=accounts.stores.to_device,
            sessions=accounts.sessions,
            now_ms=base.now_ms,
        )
        self.backups = KeyBackups(
            store=KeyBackupStore(database=base.database), limiter=base.limiter
        )

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        return (Job("sweep_key_backups", self.backups.do_sweep, 60.0),)

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.backups, self.cross_signing, self.dehydrated_devices)
