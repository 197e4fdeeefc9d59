"""Keys of other servers: stored for good, read for many servers at once."""

from storage.engine.database import Database
from storage.federation.server_keys import (
    MAX_STORED_KEYS,
    ServerKeyStore,
    StoredDocument,
    StoredKey,
    StoredServerKeys,
)


async def test_withdrawn_keys_stay(database: Database) -> None:
    store = ServerKeyStore(database)
    old, new = StoredKey(b"o" * 32, 100), StoredKey(b"n" * 32, 900)
    await store.set_keys("a.example", {"ed25519:o": old}, StoredDocument(b"{}", 100, 1))
    await store.set_keys("a.example", {"ed25519:n": new}, StoredDocument(b'{"a":1}', 900, 2))
    await store.add_keys("b.example", {"ed25519:o": old})
    assert await store.get_keys(["a.example", "b.example", "c.example"]) == {
        "a.example": StoredServerKeys({"ed25519:o": old, "ed25519:n": new}, 900, 2),
        "b.example": StoredServerKeys({"ed25519:o": old}, 0, 0),
    }
    assert await store.get_documents(["a.example", "b.example"]) == {
        "a.example": StoredDocument(b'{"a":1}', 900, 2)
    }


async def test_a_key_with_the_same_id_replaces_the_old_one(database: Database) -> None:
    store = ServerKeyStore(database)
    for until in (900, 100):
        said = StoredDocument(b"{}", until, until)
        await store.set_keys("a.example", {"ed25519:o": StoredKey(b"o" * 32, until)}, said)
    assert (await store.get_keys(["a.example"]))["a.example"].keys == {
        "ed25519:o": StoredKey(b"o" * 32, 100)
    }


async def test_the_number_of_keys_is_bounded_and_current_ones_stay(
    database: Database,
) -> None:
    store = ServerKeyStore(database)
    said = StoredDocument(b"{}", 100, 1)
    for number in range(5):
        keys = {f"ed25519:{number}_{each}": StoredKey(b"o" * 32, number) for each in range(100)}
        await store.set_keys("a.example", keys, said)
    await store.set_keys("a.example", {"ed25519:now": StoredKey(b"n" * 32, 0)}, said)
    await store.set_keys("b.example", {"ed25519:now": StoredKey(b"n" * 32, 0)}, said)
    kept = (await store.get_keys(["a.example", "b.example"]))["a.example"].keys
    assert len(kept) == await _count(database) - 1 == MAX_STORED_KEYS
    assert "ed25519:now" in kept
    assert {f"ed25519:{number}_{each}" for number in (3, 4) for each in range(100)} < kept.keys()


async def _count(database: Database) -> int:
    rows = await database.read("count", lambda txn: txn.query("SELECT count(*) FROM server_keys"))
    return int(rows[0][0])
