"""Addresses by which people are found at an identity server: those that this server had bound there, to unbind them later."""

from collections.abc import Callable

import msgspec

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction


class BindingRow(msgspec.Struct, frozen=True):
    """One. `id_server`: host, and port where it has one."""

    user_id: str
    medium: str
    address: str
    id_server: str
    attempts: int = 0
    """How often it was to be unbound since its account was closed, in vain."""


_KEY = "user_id = ? AND medium = ? AND address = ? AND id_server = ?"


class IdentityBindingStore:
    """The table of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_bindings(self, user_id: str) -> list[BindingRow]:
        """Those of a user."""

        def read(txn: Transaction) -> list[BindingRow]:
            sql = (
                "SELECT user_id, medium, address, id_server FROM identity_bindings WHERE user_id = ?"
                " ORDER BY medium, address, id_server"
            )
            return [BindingRow(*row) for row in txn.query(sql, (user_id,))]

        return await self._database.read("get_identity_bindings", read)

    async def add_binding(self, row: BindingRow) -> None:
        """Note one; one that is noted already is no error."""

        def write(txn: WriteTransaction) -> None:
            sql = (
                "INSERT INTO identity_bindings (user_id, medium, address, id_server) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING"
            )
            txn.execute(sql, (row.user_id, row.medium, row.address, row.id_server))

        await self._database.write("add_identity_binding", write)

    async def remove_binding(self, row: BindingRow) -> None:
        """Forget one."""

        def write(txn: WriteTransaction) -> None:
            sql = f"DELETE FROM identity_bindings WHERE {_KEY}"
            txn.execute(sql, (row.user_id, row.medium, row.address, row.id_server))

        await self._database.write("remove_identity_binding", write)

    def set_due(self, txn: WriteTransaction, user_id: str, unbind_ts: int) -> None:
        """Those of a user, whose account ends, are to be unbound from then on (milliseconds since 1970)."""
        txn.execute("UPDATE identity_bindings SET unbind_ts = ? WHERE user_id = ?", (unbind_ts, user_id))

    async def take_due(self, now: int, pause: Callable[[int], int]) -> BindingRow | None:
        """The one that has been due for longest. Nobody else is given it for `pause(attempts)` ms, when it is due again."""

        def write(txn: WriteTransaction) -> BindingRow | None:
            found = txn.query_one(
                "SELECT user_id, medium, address, id_server, attempts FROM identity_bindings WHERE unbind_ts <= ?"
                " ORDER BY unbind_ts LIMIT 1",
                (now,),
            )
            if found is None:
                return None
            row = BindingRow(*found)
            sql = f"UPDATE identity_bindings SET unbind_ts = ?, attempts = attempts + 1 WHERE {_KEY}"
            txn.execute(sql, (now + pause(row.attempts), row.user_id, row.medium, row.address, row.id_server))
            return row

        return await self._database.write("take_identity_binding", write)
