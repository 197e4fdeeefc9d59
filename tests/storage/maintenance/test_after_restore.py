"""The repair of a restored database. `tests/federation/test_restored_backup.py` proves that other
servers notice."""

import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from storage.devices.device_list_log import DeviceListLog
from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.device_keys import DeviceKeyStore, KeyCounts, NewKeys
from storage.encryption.key_backups import KeyBackupStore
from storage.encryption.remote_devices import RemoteDeviceStore
from storage.engine.database import (
    Database,
    PostgresConfig,
    SQLiteConfig,
    WriteTransaction,
    make_engine,
)
from storage.filters.filters import FilterStore
from storage.maintenance.after_restore import SKIPPED_IDS, SKIPPED_POSITIONS, repair_after_restore
from tests.helpers.databases import write_config_file

ALICE, BOB, CAROL = "@alice:example.org", "@bob:example.org", "@carol:elsewhere.example"
CURVE = "signed_curve25519"


async def test_one_time_keys_are_removed_and_device_lists_fetched_again(database: Database) -> None:
    devices, keys, remote = (
        DeviceStore(database),
        DeviceKeyStore(database),
        RemoteDeviceStore(database),
    )

    def fill(txn: WriteTransaction) -> None:
        for user_id, device_id in ((ALICE, "PHONE"), (ALICE, "LAPTOP"), (BOB, "PHONE")):
            devices.add_device(txn, DeviceRow(user_id, device_id, None, 1))
        for device_id in ("PHONE", "LAPTOP"):
            one_time = {(CURVE, f"{device_id}{n}"): b"{}" for n in range(250)}
            keys.upload_keys(
                txn, ALICE, device_id, NewKeys(b'{"keys":{}}', one_time, {(CURVE, "F"): b'"f"'}), 0
            )

    await database.write("test", fill)
    requested = (ALICE, "PHONE", CURVE)
    for number in range(150):
        assert await keys.claim_in_chunks([requested], 1) == [b'"PHONE%d":{}' % number]
    await remote.set_list(CAROL, 7, (), (), 0)
    head = await database.get_head()
    settled = await database.write("test", repair_after_restore)
    assert (settled.devices, settled.stale_lists, settled.users) == (2, 1, 2)
    changed = await database.get_head()
    assert changed > head + SKIPPED_POSITIONS
    reopened = DeviceKeyStore(database)
    assert await reopened.claim_in_chunks([requested], 1) == [b'"F":"f"']
    assert (await reopened.get_counts(ALICE, "LAPTOP"))[0] == KeyCounts({CURVE: 1}, [], 1), (
        "some clients treat zero as unchanged"
    )
    assert await remote.get_stale("", 10) == [CAROL]
    assert await devices.get_all_changed_device_lists(head, changed) == {ALICE, BOB}
    for user_id, named in ((ALICE, "LAPTOP"), (BOB, "PHONE")):
        (change,) = await DeviceListLog(database).get_changes(user_id, head)
        assert (change.device_id, change.stream_id) == (named, changed)
        assert head < change.prev_id < changed, "which no server knows"

    def upload(txn: WriteTransaction) -> KeyCounts:
        new = {(CURVE, "PHONE1"): b"{}", (CURVE, "NEW"): b"{}"}
        return reopened.upload_keys(txn, ALICE, "PHONE", NewKeys(None, new, {}), 0)

    assert (await database.write("test", upload)).one_time == {CURVE: 2}
    assert (await reopened.get_counts(ALICE, "PHONE"))[0] == KeyCounts({CURVE: 2}, [], 1)
    claimed = [await reopened.claim_in_chunks([requested], 1) for _ in range(3)]
    assert claimed == [[b'"PHONE1":{}'], [b'"NEW":{}'], [b'"F":"f"']]
    assert (await reopened.get_counts(ALICE, "PHONE"))[0] == KeyCounts({}, [], 1)
    # again, with one device that has published keys since, and one that has not
    for _ in range(2):
        assert (await database.write("test", repair_after_restore)).devices == 2
        for device_id in ("PHONE", "LAPTOP"):
            assert (await reopened.get_counts(ALICE, device_id))[0] == KeyCounts({CURVE: 1}, [], 1)
            assert await reopened.claim_in_chunks([(ALICE, device_id, CURVE)], 1) == [b'"F":"f"']
    assert (await database.write("test", upload)).one_time == {CURVE: 2}


async def test_no_key_backup_reuses_a_lost_version(database: Database) -> None:
    """Clients identify by the version the key with which they encrypt."""
    devices, backups = DeviceStore(database), KeyBackupStore(database=database)

    def fill(txn: WriteTransaction) -> None:
        for user_id in (ALICE, BOB):
            devices.add_device(txn, DeviceRow(user_id, "PHONE", None, 1))

    await database.write("test", fill)
    for _ in range(2):
        await backups.add_backup(ALICE, "a", b"{}")
    await database.write("test", repair_after_restore)
    current = await backups.get_backup(ALICE, None)
    assert current is not None
    assert current.version == 2
    assert await backups.get_backup(BOB, None) is None
    assert await backups.add_backup(ALICE, "a", b"{}") == 3 + SKIPPED_IDS
    assert await backups.add_backup(BOB, "a", b"{}") == 1 + SKIPPED_IDS


async def test_no_filter_reuses_a_lost_id(database: Database) -> None:
    """Clients cache the ID, and would get the results of another filter."""
    devices, filters = DeviceStore(database), FilterStore(database)

    def fill(txn: WriteTransaction) -> None:
        for user_id in (ALICE, BOB):
            devices.add_device(txn, DeviceRow(user_id, "PHONE", None, 1))

    await database.write("test", fill)
    assert [await filters.add_filter(ALICE, text, 1) for text in ("{}", '{"a":1}')] == [0, 1]
    for number in (1, 2):
        await database.write("test", repair_after_restore)
        assert await filters.add_filter(ALICE, "{}", 1) == 0
        assert await filters.add_filter(ALICE, f'{{"b":{number}}}', 1) == 1 + number * (
            SKIPPED_IDS + 1
        )
        assert await filters.add_filter(BOB, f'{{"b":{number}}}', 1) == number * (SKIPPED_IDS + 1)


async def test_a_new_database_needs_no_repair(database: Database) -> None:
    settled = await database.write("test", repair_after_restore)
    assert (settled.devices, settled.stale_lists, settled.users) == (0, 0, 0)


def test_the_command_requires_that_no_server_runs(
    postgresql: PostgresConfig, tmp_path: Path
) -> None:
    config = write_config_file(tmp_path, "homeserver.yaml", postgresql)
    node = make_engine(postgresql).open_node_channel()
    assert node is not None
    words = [sys.executable, "-m", "homeserver", "after-restore", "-c", str(config)]
    refused = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    node.close()
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: the server is running: stop all its processes first")
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("0 devices will publish new one-time keys,")


def test_the_command_refuses_a_backup_mixed_with_the_log_of_another_file(
    sqlite: SQLiteConfig, tmp_path: Path
) -> None:
    """A power failure leaves the log. SQLite takes its pages for newer ones of the restored
    file."""
    path, backup = Path(sqlite.path), tmp_path / "backup.db"
    log, index = (path.with_name(f"{path.name}-{end}") for end in ("wal", "shm"))
    config = write_config_file(tmp_path, "homeserver.yaml", sqlite)
    words = [sys.executable, "-m", "homeserver", "after-restore", "-c", str(config)]
    with closing(sqlite3.connect(path, isolation_level=None)) as server:
        server.execute("PRAGMA journal_mode = WAL")
        server.execute("CREATE TABLE said (text)")
        server.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(path, backup)
        for where in ("that went to the file", "that is in the log alone"):
            server.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            server.execute("BEGIN")
            server.executemany(
                "INSERT INTO said (text) VALUES (?)", ((f"{n} {where}" * 20,) for n in range(1000))
            )
            server.execute("COMMIT")
        left = log.read_bytes()
    index.unlink(missing_ok=True)
    shutil.copy(backup, path)
    log.write_bytes(left)
    refused = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 1
    # the page in SQLite's message: "Page 5: …" or "On tree page 5 …" before 3.41, "Tree 2 page 5 …"
    # since
    damage = (
        rf"Error: the SQLite file {re.escape(str(path))} is damaged \((On |)(Tree |)(\d+ |)page \d+"
    )
    assert re.match(damage, refused.stderr, re.IGNORECASE), refused.stderr
    for file in (log, index):
        file.unlink(missing_ok=True)
    shutil.copy(backup, path)
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
