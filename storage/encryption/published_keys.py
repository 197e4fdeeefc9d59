"""Reads the published keys of local and remote users together, with a fixed number of queries.

For local users it first reads the position of the latest change of each device list, then the
keys. So the keys are never older than these positions.

It reads the signatures that the owners made on their own keys. It does not read the signatures by
other users, so any number of them costs nothing. The signatures that the requesting user made are
read separately (`get_positions_and_signatures`).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from storage.devices.devices import select_positions
from storage.encryption.cross_signing import (
    CrossSigningKey,
    KeySignature,
    select_keys,
    select_own_signatures,
    select_signed_by,
)
from storage.encryption.device_keys import DeviceKeysRow, select_device_keys
from storage.encryption.remote_devices import select_remote_devices
from storage.engine.database import Database
from storage.engine.transaction import Transaction

INLINE_USERS: Final = 4
"""Keys of at most this many users are read on the calling thread, if the database allows that."""


class PublishedKeys(msgspec.Struct, frozen=True):
    """The devices, the cross-signing keys by usage, and the visible signatures of users, each by
    user."""

    devices: Mapping[str, Sequence[DeviceKeysRow]] = msgspec.field(default_factory=dict)
    cross_signing: Mapping[str, Mapping[str, CrossSigningKey]] = msgspec.field(default_factory=dict)
    signatures: Mapping[str, Sequence[KeySignature]] = msgspec.field(default_factory=dict)
    positions: Mapping[str, int] = msgspec.field(default_factory=dict)
    """For local users, the position of the latest change that is included. Users who never
    published keys are missing."""


class PublishedKeyStore:
    """Reads all tables of keys together."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.is_single_process = database.engine.name == "sqlite"
        """Whether no other process writes."""

    async def get_published(
        self, local_users: Collection[str], remote_users: Collection[str]
    ) -> PublishedKeys:
        """Return the keys of local and remote users, with their own signatures on them."""
        read = (
            self._database.read_quickly
            if len(local_users) + len(remote_users) <= INLINE_USERS
            else self._database.read
        )
        return await read("get_published_keys", _select, tuple(local_users), tuple(remote_users))

    async def get_positions_and_signatures(
        self, local_users: Collection[str], signer: str | None
    ) -> tuple[Mapping[str, int], Mapping[str, Sequence[KeySignature]]]:
        """Return the positions of the latest changes of local users' device lists, and the
        signatures of `signer` on keys of other users, by user. One query each."""
        return await self._database.read_quickly(
            "get_newest_published_keys", _select_newest, tuple(local_users), signer
        )

    async def get_head(self) -> int:
        """Return the position of the latest committed change of any kind; one query."""
        return await self._database.get_head()

    async def get_signed_by(self, signer: str) -> Mapping[str, Sequence[KeySignature]]:
        """Return the signatures of `signer` on keys of other users, by user; one query."""
        return await self._database.read_quickly("get_signatures_by", select_signed_by, signer)


def are_keys_current(
    txn: Transaction, keys: PublishedKeys, signer: str, targets: Collection[str]
) -> bool:
    """Return whether the cross-signing keys of these users, and the identity keys of the devices of
    the local signer, are unchanged; two queries."""
    users = {signer, *targets}
    present = select_keys(txn, users)
    if any(present.get(user_id, {}) != keys.cross_signing.get(user_id, {}) for user_id in users):
        return False
    devices = select_device_keys(txn, (signer,)).get(signer, ())
    return _identity_keys(devices) == _identity_keys(keys.devices.get(signer, ()))


def _identity_keys(devices: Sequence[DeviceKeysRow]) -> dict[str, bytes]:
    return {row.device_id: row.keys for row in devices}


def _select(
    txn: Transaction, local_users: tuple[str, ...], remote_users: tuple[str, ...]
) -> PublishedKeys:
    users = (*local_users, *remote_users)
    positions = (
        select_positions(txn, local_users) if local_users else {}
    )  # read first, so that the keys are not older
    return PublishedKeys(
        {**select_device_keys(txn, local_users), **select_remote_devices(txn, remote_users)},
        select_keys(txn, users),
        select_own_signatures(txn, users),
        positions,
    )


def _select_newest(
    txn: Transaction, local_users: tuple[str, ...], signer: str | None
) -> tuple[dict[str, int], dict[str, list[KeySignature]]]:
    positions = select_positions(txn, local_users) if local_users else {}
    return positions, {} if signer is None else select_signed_by(txn, signer)
