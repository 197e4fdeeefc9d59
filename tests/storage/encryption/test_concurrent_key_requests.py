"""Concurrent requests: each one-time key goes to one caller, and backups count their keys
correctly."""

from collections.abc import Coroutine
from typing import Any

import pytest
from twisted.internet.defer import Deferred, gatherResults

from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.device_keys import DeviceKeyStore, NewKeys
from storage.encryption.key_backups import BackedUpKey, BackupRow, KeyBackupStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction

ALICE, DEVICE, ALGORITHM = "@alice:example.org", "PHONE", "signed_curve25519"
KEYS, CLAIMERS = 40, 50
UPLOADS = 20


async def at_once(work: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await gatherResults([Deferred.fromCoroutine(each) for each in work], consumeErrors=True)


@pytest.mark.reactor(120)
async def test_no_key_is_claimed_twice_and_none_is_lost(threaded_database: Database) -> None:
    keys = DeviceKeyStore(threaded_database)

    def add(txn: WriteTransaction, first: int, number: int) -> None:
        new = {
            (ALGORITHM, f"k{index}"): b'{"key":"%d"}' % index
            for index in range(first, first + number)
        }
        keys.upload_keys(txn, ALICE, DEVICE, NewKeys(None, new, {}), 0)

    device = DeviceRow(ALICE, DEVICE, None, 0)
    await threaded_database.write("add_device", DeviceStore(threaded_database).add_device, device)
    await threaded_database.write(
        "add",
        lambda txn: keys.upload_keys(
            txn, ALICE, DEVICE, NewKeys(None, {}, {(ALGORITHM, "f"): b"{}"}), 0
        ),
    )
    await threaded_database.write("add", add, 0, KEYS // 2)
    requested = (ALICE, DEVICE, ALGORITHM)
    claims: list[Coroutine[Any, Any, Any]] = [
        keys.claim_in_chunks([requested], 0) for _ in range(CLAIMERS)
    ]
    claims.insert(10, threaded_database.write("add", add, KEYS // 2, KEYS - KEYS // 2))
    claimed: list[bytes] = [answer[0] for answer in await at_once(claims) if answer is not None]
    given = [key for key in claimed if key != b'"f":{}']
    assert len(claimed) == CLAIMERS
    assert len(set(given)) == len(given), "a key was claimed twice"
    left = (await keys.get_counts(ALICE, DEVICE))[0].one_time.get(ALGORITHM, 0)
    assert len(given) + left == KEYS, "a key was lost"


@pytest.mark.reactor(120)
async def test_concurrent_uploads_into_a_backup_are_counted(threaded_database: Database) -> None:
    backups = KeyBackupStore(database=threaded_database)
    version = await backups.add_backup(ALICE, "m.megolm_backup.v1.curve25519-aes-sha2", b"{}")

    def session(upload: int) -> list[BackedUpKey]:
        own = BackedUpKey("!r:example.org", f"own{upload}", 0, 0, False, b"{}")
        return [
            own,
            BackedUpKey("!r:example.org", "shared", UPLOADS - upload, 0, False, b"%d" % upload),
        ]

    answers: list[BackupRow] = await at_once(
        [backups.put_keys(ALICE, version, session(upload)) for upload in range(UPLOADS)]
    )
    etags = [answer.etag for answer in answers]
    assert len(set(etags)) == UPLOADS, "each upload changed something, so each has its own etag"
    kept = {
        key.session_id: key for key in await backups.get_keys(ALICE, version, None, ("", ""), 100)
    }
    assert len(kept) == UPLOADS + 1
    assert kept["shared"].first_message_index == 1, "the best key stays"
    backup = await backups.get_backup(ALICE, None)
    assert backup is not None
    assert (backup.key_count, backup.etag) == (UPLOADS + 1, max(etags))
