"""Bindings of e-mail addresses and telephone numbers that this server made at identity servers.

They are stored so that this server can unbind them later.
"""

from collections.abc import Callable

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class IdentityBindingRow(msgspec.Struct, frozen=True):
    """A binding. `id_server`: the host, with the port if there is one."""

    user_id: str
    medium: str
    address: str
    id_server: str
    attempts: int = 0
    """The number of failed attempts to unbind it."""


_KEY = "user_id = ? AND medium = ? AND address = ? AND id_server = ?"


class IdentityBindingStore:
    """The table `identity_bindings`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_bindings(self, user_id: str) -> list[IdentityBindingRow]:
        """Return the bindings of a user."""
        return await self._database.read("get_identity_bindings", self._get, user_id)

    def add_binding(self, txn: WriteTransaction, row: IdentityBindingRow) -> None:
        """Add a binding; cancel the unbinding if it exists already.

        A binding of an account deactivated in the meantime is due to be unbound at once.
        """
        sql = (
            "INSERT INTO identity_bindings (user_id, medium, address, id_server, unbind_ts)"
            " VALUES (?, ?, ?, ?,"
            " (SELECT 0 FROM accounts WHERE user_id = ? AND deactivated_ts IS NOT NULL))"
            " ON CONFLICT (user_id, medium, address, id_server)"
            " DO UPDATE SET unbind_ts = excluded.unbind_ts, attempts = 0"
        )
        txn.execute(sql, (row.user_id, row.medium, row.address, row.id_server, row.user_id))

    def remove_unbound(self, txn: WriteTransaction, row: IdentityBindingRow) -> bool:
        """Remove an unbound binding; return False if it was bound again in the meantime."""
        return bool(
            txn.execute(
                f"DELETE FROM identity_bindings WHERE {_KEY} AND unbind_ts IS NOT NULL", _key(row)
            )
        )

    async def give_up(self, row: IdentityBindingRow) -> None:
        """Stop retrying to unbind.

        Removes the binding of a deactivated account; keeps that of an active one, whose owner may
        request it again.
        """

        def write(txn: WriteTransaction) -> None:
            closed = (
                "EXISTS (SELECT 1 FROM accounts a WHERE a.user_id = ?"
                " AND a.deactivated_ts IS NOT NULL)"
            )
            sql = (
                f"DELETE FROM identity_bindings WHERE {_KEY} AND unbind_ts IS NOT NULL AND {closed}"
            )
            txn.execute(sql, (*_key(row), row.user_id))
            txn.execute(
                f"UPDATE identity_bindings SET unbind_ts = NULL, attempts = 0 WHERE {_KEY}",
                _key(row),
            )

        await self._database.write("abandon_identity_binding", write)

    async def claim(
        self, user_id: str, unbind_ts: int, medium: str | None, address: str, id_server: str | None
    ) -> list[IdentityBindingRow]:
        """Do `set_due` in its own write; return the bindings."""
        if not await self.get_bindings(user_id):
            return []
        return await self._database.write(
            "set_identity_bindings_due",
            self.set_due,
            user_id,
            unbind_ts,
            medium,
            address,
            id_server,
        )

    def set_due(
        self,
        txn: WriteTransaction,
        user_id: str,
        unbind_ts: int,
        medium: str | None = None,
        address: str = "",
        id_server: str | None = None,
    ) -> list[IdentityBindingRow]:
        """Mark bindings of a user as due to be unbound from `unbind_ts` (ms since 1970).

        `medium`: None for all addresses; `id_server`: None for all servers. Addresses are compared
        case-insensitively. Return the bindings.
        """
        wanted = address.strip().lower()
        rows = [
            row
            for row in self._get(txn, user_id)
            if medium is None or (row.medium == medium and row.address.lower() == wanted)
            if id_server is None or row.id_server == id_server
        ]
        sql = f"UPDATE identity_bindings SET unbind_ts = ?, attempts = 0 WHERE {_KEY}"
        txn.execute_many(sql, [(unbind_ts, *_key(row)) for row in rows])
        return rows

    async def take_due(self, now: int, pause: Callable[[int], int]) -> IdentityBindingRow | None:
        """Take the binding that has been due for longest; it is due again in `pause(attempts)` ms.

        No other caller gets it until then.
        """

        def write(txn: WriteTransaction) -> IdentityBindingRow | None:
            found = txn.query_one(
                "SELECT user_id, medium, address, id_server, attempts FROM identity_bindings"
                " WHERE unbind_ts <= ?"
                " ORDER BY unbind_ts LIMIT 1",
                (now,),
            )
            if found is None:
                return None
            row = IdentityBindingRow(*found)
            sql = (
                f"UPDATE identity_bindings SET unbind_ts = ?, attempts = attempts + 1 WHERE {_KEY}"
            )
            txn.execute(sql, (now + pause(row.attempts), *_key(row)))
            return row

        return await self._database.write("take_due_identity_binding", write)

    @staticmethod
    def _get(txn: Transaction, user_id: str) -> list[IdentityBindingRow]:
        sql = (
            "SELECT user_id, medium, address, id_server FROM identity_bindings WHERE user_id = ?"
            " ORDER BY medium, address, id_server"
        )
        return [IdentityBindingRow(*row) for row in txn.query(sql, (user_id,))]


def _key(row: IdentityBindingRow) -> tuple[str, str, str, str]:
    return (row.user_id, row.medium, row.address, row.id_server)
