"""Signing keys of other servers, and the last key document of each.

A key that a server has withdrawn stays stored, because events that were signed while it was valid
must still be verified. But a server may publish any number of keys, so the number of stored keys
per server is limited. Beyond the limit, the keys whose validity ends first are deleted, but never
those that were just received.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MAX_STORED_KEYS: Final = 250
"""The maximum number of keys per server. It is larger than the number of keys in one document."""


class StoredKey(msgspec.Struct, frozen=True):
    """A public key, and the end of its validity in ms since 1970."""

    public_key: bytes
    valid_until: int


class StoredDocument(msgspec.Struct, frozen=True):
    """The last key document of a server; times in ms."""

    document: bytes
    """JSON with the server's own signatures."""
    valid_until: int
    fetched_at: int


class StoredServerKeys(msgspec.Struct, frozen=True):
    """All stored keys of a server."""

    keys: Mapping[str, StoredKey]
    valid_until: int
    fetched_at: int


class ServerKeyStore:
    """Reads and writes the tables of other servers' keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_keys(self, servers: Iterable[str]) -> Mapping[str, StoredServerKeys]:
        """Return all keys of these servers in one read. A server without keys is absent."""
        return await self._database.read_quickly("get_server_keys", _get_keys, tuple(servers))

    async def get_documents(self, servers: Iterable[str]) -> Mapping[str, StoredDocument]:
        """Return the last documents of these servers, in one query."""
        return await self._database.read("get_server_key_documents", _get_documents, tuple(servers))

    async def set_keys(
        self, server: str, keys: Mapping[str, StoredKey], document: StoredDocument
    ) -> None:
        """Store the current keys and document of a server, at most `MAX_STORED_KEYS`. Its other
        keys stay, as far as they fit."""
        await self._database.write("set_server_keys", self.set_keys_in, server, keys, document)

    async def add_keys(self, server: str, keys: Mapping[str, StoredKey]) -> None:
        """Add keys without a document, replacing those with the same IDs. Other keys stay, as far
        as they fit."""
        await self._database.write("add_server_keys", _add_keys, server, keys)

    def set_keys_in(
        self,
        txn: WriteTransaction,
        server: str,
        keys: Mapping[str, StoredKey],
        document: StoredDocument,
    ) -> None:
        """Do `set_keys` in a transaction."""
        _add_keys(txn, server, keys)
        txn.execute(
            "INSERT INTO server_key_documents (server_name, document, valid_until, fetched_at)"
            " VALUES (?, ?, ?, ?)"
            " ON CONFLICT (server_name) DO UPDATE SET document = excluded.document,"
            " valid_until = excluded.valid_until, fetched_at = excluded.fetched_at",
            (server, document.document, document.valid_until, document.fetched_at),
        )


def _add_keys(txn: WriteTransaction, server: str, keys: Mapping[str, StoredKey]) -> None:
    txn.execute_many(
        "INSERT INTO server_keys (server_name, key_id, public_key, valid_until) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (server_name, key_id)"
        " DO UPDATE SET public_key = excluded.public_key, valid_until = excluded.valid_until",
        [(server, key_id, key.public_key, key.valid_until) for key_id, key in keys.items()],
    )
    sql = "SELECT key_id FROM server_keys WHERE server_name = ? ORDER BY valid_until DESC, key_id"
    others = [key_id for (key_id,) in txn.query(sql, (server,)) if key_id not in keys]
    txn.execute_many(
        "DELETE FROM server_keys WHERE server_name = ? AND key_id = ?",
        [(server, key_id) for key_id in others[max(0, MAX_STORED_KEYS - len(keys)) :]],
    )


def _get_keys(txn: Transaction, servers: tuple[str, ...]) -> dict[str, StoredServerKeys]:
    document = {
        server: (valid_until, fetched_at)
        for server, valid_until, fetched_at in txn.query_in(
            "SELECT server_name, valid_until, fetched_at FROM server_key_documents"
            " WHERE server_name IN {keys}",
            servers,
        )
    }
    keys: dict[str, dict[str, StoredKey]] = {server: {} for server in document}
    sql = (
        "SELECT server_name, key_id, public_key, valid_until FROM server_keys"
        " WHERE server_name IN {keys}"
    )
    for server, key_id, public_key, valid_until in txn.query_in(sql, servers):
        keys.setdefault(server, {})[key_id] = StoredKey(bytes(public_key), valid_until)
    return {
        server: StoredServerKeys(found, *document.get(server, (0, 0)))
        for server, found in keys.items()
    }


def _get_documents(txn: Transaction, servers: tuple[str, ...]) -> dict[str, StoredDocument]:
    sql = (
        "SELECT server_name, document, valid_until, fetched_at FROM server_key_documents"
        " WHERE server_name IN {keys}"
    )
    return {
        server: StoredDocument(bytes(document), valid_until, fetched_at)
        for server, document, valid_until, fetched_at in txn.query_in(sql, servers)
    }
