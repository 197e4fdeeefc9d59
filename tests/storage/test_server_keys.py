"""Keys of other servers: kept for good, read for many servers at once."""

from storage.database import Database
from storage.server_keys import ServerKeyStore, StoredDocument, StoredKey, StoredServer


async def test_keys_that_a_server_no_longer_speaks_of_stay(database: Database) -> None:
    store = ServerKeyStore(database)
    old, new = StoredKey(b"o" * 32, 100), StoredKey(b"n" * 32, 900)
    await store.set_keys("a.example", {"ed25519:o": old}, StoredDocument(b"{}", 100, 1))
    await store.set_keys("a.example", {"ed25519:n": new}, StoredDocument(b'{"a":1}', 900, 2))
    await store.add_keys("b.example", {"ed25519:o": old})
    assert await store.get_keys(["a.example", "b.example", "c.example"]) == {
        "a.example": StoredServer({"ed25519:o": old, "ed25519:n": new}, 900, 2),
        "b.example": StoredServer({"ed25519:o": old}, 0, 0),
    }
    assert await store.get_documents(["a.example", "b.example"]) == {"a.example": StoredDocument(b'{"a":1}', 900, 2)}


async def test_a_key_that_is_said_anew_takes_the_place_of_the_old_one(database: Database) -> None:
    store = ServerKeyStore(database)
    for until in (900, 100):
        said = StoredDocument(b"{}", until, until)
        await store.set_keys("a.example", {"ed25519:o": StoredKey(b"o" * 32, until)}, said)
    assert (await store.get_keys(["a.example"]))["a.example"].keys == {"ed25519:o": StoredKey(b"o" * 32, 100)}
