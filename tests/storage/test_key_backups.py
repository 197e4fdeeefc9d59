"""Backups of room keys: a deleted one is invisible at once, and its keys are deleted in small
steps."""

import pytest

from storage.encryption.key_backups import (
    DELETE_CHUNK,
    PUT_CHUNK,
    BackedUpKey,
    BackupFull,
    KeyBackupStore,
    NoSuchBackup,
)
from storage.engine.database import Database, PostgresConfig, SQLiteConfig, Transaction
from tests.helpers.databases import QueryCounter, open_inline

USER = "@alice:example.org"


def keys(number: int) -> list[BackedUpKey]:
    return [
        BackedUpKey(f"!{at % 7}:example.org", f"s{at}", 0, 0, False, b"{}") for at in range(number)
    ]


async def left(database: Database) -> int:
    def read(txn: Transaction) -> int:
        ((number,),) = txn.query("SELECT count(*) FROM backed_up_keys")
        return int(number)

    return await database.read("count_keys", read)


@pytest.mark.parametrize("number", [3, DELETE_CHUNK, 2 * DELETE_CHUNK + 250])
async def test_a_deleted_backup_is_invisible_at_once_and_its_keys_go_in_steps(
    database: Database, number: int
) -> None:
    store = KeyBackupStore(database=database)
    first = await store.add_backup(USER, "a", b"{}")
    await store.put_keys(USER, first, keys(number))
    second = await store.add_backup(USER, "a", b"{}")
    kept = await store.put_keys(USER, second, keys(4))
    await store.remove_backup(USER, first)
    assert await store.get_backup(USER, first) is None
    assert await left(database) == 4 + max(0, number - DELETE_CHUNK)
    with pytest.raises(NoSuchBackup):
        await store.put_keys(USER, first, keys(1))
    await store.remove_backup(USER, first)
    steps = 0
    while await store.sweep(100):
        steps += 1
    assert steps <= 1 + number // 100
    assert await left(database) == kept.key_count == 4
    assert await store.get_backup(USER, None) == kept


async def test_each_write_of_very_many_keys_is_short(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    """Keys of many rooms, and of one: a user with two hundred thousand keys must not block other
    writes."""
    counter = QueryCounter()
    database = open_inline(database_config, counter)
    store = KeyBackupStore(database=database)
    version = await store.add_backup(USER, "a", b"{}")
    number = 3 * PUT_CHUNK + 1
    of_many_rooms = [
        BackedUpKey(f"!{at}:example.org", "s", 0, 0, False, b"{}") for at in range(number)
    ]
    of_one = [BackedUpKey("!one:example.org", f"s{at}", 0, 0, False, b"{}") for at in range(number)]
    counter.clear()
    for given in (of_many_rooms, of_one):
        kept = await store.put_keys(USER, version, given)
        assert counter.writes["put_backed_up_keys"] == 4
        assert counter.queries["put_backed_up_keys"] <= 4 * 5, "however many rooms the keys are of"
        counter.clear()
    assert kept.key_count == await left(database) == 2 * number
    assert await store.put_keys(USER, version, of_many_rooms) == kept, "no key is better"
    removed = await store.remove_keys(USER, version, "!one:example.org", None)
    assert removed.key_count == await left(database) == number
    counter.clear()
    removed = await store.remove_keys(USER, version, None, None)
    assert counter.writes["remove_backed_up_keys"] == 1 + number // DELETE_CHUNK
    assert removed.key_count == await left(database) == 0
    assert removed.etag > kept.etag
    await database.close()


async def test_a_backup_has_a_limit_on_keys(database: Database) -> None:
    store = KeyBackupStore(database=database, max_keys=3)
    version = await store.add_backup(USER, "a", b"{}")
    await store.put_keys(USER, version, keys(3))
    with pytest.raises(BackupFull):
        await store.put_keys(USER, version, keys(4))
    assert await left(database) == 3
    better = [BackedUpKey("!0:example.org", "s0", 0, 0, True, b"{}")]
    assert (await store.put_keys(USER, version, better)).key_count == 3, (
        "a stored key may be replaced"
    )


async def test_an_ended_account_has_no_backup(database: Database) -> None:
    store = KeyBackupStore(database=database)
    for _ in range(2):
        await store.put_keys(USER, await store.add_backup(USER, "a", b"{}"), keys(3))
    other = await store.put_keys(
        "@bob:example.org", await store.add_backup("@bob:example.org", "a", b"{}"), keys(2)
    )
    await database.write("remove", store.remove_user, USER)
    assert await store.get_backup(USER, None) is None
    while await store.sweep(100):
        pass
    assert await left(database) == other.key_count == 2


async def test_reading_a_backup_fails_if_it_is_deleted_meanwhile(
    database: Database,
) -> None:
    store = KeyBackupStore(database=database)
    version = await store.add_backup(USER, "a", b"{}")
    await store.put_keys(USER, version, keys(5))
    first = await store.get_keys(USER, version, None, ("", ""), 3)
    end = (first[-1].room_id, first[-1].session_id)
    rest = await store.get_keys(USER, version, None, end, 3)
    assert [*first, *rest] == sorted(keys(5), key=lambda key: (key.room_id, key.session_id))
    await store.remove_backup(USER, version)
    with pytest.raises(NoSuchBackup):
        await store.get_keys(USER, version, None, end, 3)
