"""Addresses by which people are found at an identity server: those that this server had bound there, to unbind them later."""

import msgspec

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction


class BindingRow(msgspec.Struct, frozen=True):
    """One. `id_server`: host, and port where it has one."""

    user_id: str
    medium: str
    address: str
    id_server: str


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
            sql = "DELETE FROM identity_bindings WHERE user_id = ? AND medium = ? AND address = ? AND id_server = ?"
            txn.execute(sql, (row.user_id, row.medium, row.address, row.id_server))

        await self._database.write("remove_identity_binding", write)
