"""Links between subjects of identity providers and accounts of this server.

A subject is a provider's identifier of a person. This server assumes that the provider never gives
it to another person.

Law: a subject is linked to at most one account, and an account to at most one subject of each
provider.
"""

from collections.abc import Iterable

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class ExternalIdRow(msgspec.Struct, frozen=True):
    """A link. Times are milliseconds since 1970."""

    provider: str
    subject: str
    user_id: str
    linked_ts: int
    removed_ts: int | None = None
    """When the account was locked because the person was removed from the directory."""
    synced_name_hash: str | None = None
    """Hash of the name that was last imported from the directory; None: unknown."""
    synced_addresses_hash: str | None = None
    """Hash of the addresses that were last imported; empty if some could not be imported."""


_COLUMNS = (
    "provider, subject, user_id, linked_ts, removed_ts, synced_name_hash, synced_addresses_hash"
)


class ExternalIdStore:
    """The table of links."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_link(self, provider: str, subject: str) -> ExternalIdRow | None:
        """Return the link of a subject."""
        return await self._database.read_quickly(
            "get_external_id", self.get_link_in, provider, subject
        )

    def get_link_in(self, txn: Transaction, provider: str, subject: str) -> ExternalIdRow | None:
        """Do `get_link` in a transaction."""
        sql = f"SELECT {_COLUMNS} FROM external_ids WHERE provider = ? AND subject = ?"
        row = txn.query_one(sql, (provider, subject))
        return None if row is None else ExternalIdRow(*row)

    async def get_links_of_users(self, user_ids: Iterable[str]) -> dict[str, list[ExternalIdRow]]:
        """Return the links of these accounts, in one query; accounts without links are absent."""

        def read(txn: Transaction, keys: tuple[str, ...]) -> dict[str, list[ExternalIdRow]]:
            sql = f"SELECT {_COLUMNS} FROM external_ids WHERE user_id IN {{keys}} ORDER BY provider"
            found: dict[str, list[ExternalIdRow]] = {}
            for row in txn.query_in(sql, keys):
                found.setdefault(row[2], []).append(ExternalIdRow(*row))
            return found

        return await self._database.read("get_external_ids", read, tuple(user_ids))

    async def get_links_of_provider(self, provider: str) -> list[ExternalIdRow]:
        """Return the links of a provider with active accounts, in order of subject."""

        def read(txn: Transaction) -> list[ExternalIdRow]:
            sql = (
                "SELECT e.provider, e.subject, e.user_id, e.linked_ts, e.removed_ts,"
                " e.synced_name_hash,"
                " e.synced_addresses_hash FROM external_ids e"
                " JOIN accounts a ON a.user_id = e.user_id"
                " WHERE e.provider = ? AND a.deactivated_ts IS NULL ORDER BY e.subject"
            )
            return [ExternalIdRow(*row) for row in txn.query(sql, (provider,))]

        return await self._database.read("get_external_ids_of_provider", read)

    def add_link(self, txn: WriteTransaction, row: ExternalIdRow) -> bool:
        """Link a subject to an account; False if either is already linked otherwise."""
        values = (
            row.provider,
            row.subject,
            row.user_id,
            row.linked_ts,
            row.removed_ts,
            row.synced_name_hash,
            row.synced_addresses_hash,
        )
        sql = (
            f"INSERT INTO external_ids ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING"
        )
        if txn.execute(sql, values):
            return True
        link = self.get_link_in(txn, row.provider, row.subject)
        return link is not None and link.user_id == row.user_id

    def remove_link(self, txn: WriteTransaction, user_id: str, provider: str) -> bool:
        """Remove a link; False if there is none."""
        return bool(
            txn.execute(
                "DELETE FROM external_ids WHERE user_id = ? AND provider = ?", (user_id, provider)
            )
        )

    def set_removed(
        self, txn: WriteTransaction, provider: str, subject: str, removed_ts: int | None
    ) -> bool:
        """Record since when the person is missing in the directory, or with None that they are
        back; False if that is already stored."""
        differs = "removed_ts IS NULL" if removed_ts is not None else "removed_ts IS NOT NULL"
        sql = (
            f"UPDATE external_ids SET removed_ts = ? WHERE provider = ? AND subject = ?"
            f" AND {differs}"
        )
        return bool(txn.execute(sql, (removed_ts, provider, subject)))

    async def set_synced_hashes(
        self, provider: str, subject: str, name: str, addresses: str
    ) -> None:
        """Store the hashes of a person's imported name and addresses."""

        def write(txn: WriteTransaction) -> None:
            sql = (
                "UPDATE external_ids SET synced_name_hash = ?, synced_addresses_hash = ?"
                " WHERE provider = ? AND subject = ?"
            )
            txn.execute(sql, (name, addresses, provider, subject))

        await self._database.write("set_synced_hashes", write)
