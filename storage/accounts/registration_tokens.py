"""Registration tokens. Each may have a maximum number of uses and an expiry time.

A use is first *pending* and then *completed*. If the registration is abandoned, the pending use is
released. Pending and completed uses both count against the maximum, so a token with one allowed use
never creates two accounts.

spec: client-server-api#token-authenticated-registration
"""

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class RegistrationTokenRow(msgspec.Struct, frozen=True):
    """A token. `uses_allowed`: None: unlimited. Times are milliseconds since 1970."""

    token: str
    uses_allowed: int | None = None
    pending: int = 0
    completed: int = 0
    expires_ts: int | None = None


_COLUMNS = "token, uses_allowed, pending, completed, expires_ts"


class RegistrationTokenStore:
    """The table of registration tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_registration_token(self, token: str) -> RegistrationTokenRow | None:
        """Return a token, valid or not."""
        return await self._database.read_quickly(
            "get_registration_token", self.get_registration_token_in, token
        )

    def get_registration_token_in(
        self, txn: Transaction, token: str
    ) -> RegistrationTokenRow | None:
        """Do `get_registration_token` in a transaction."""
        row = txn.query_one(f"SELECT {_COLUMNS} FROM registration_tokens WHERE token = ?", (token,))
        return None if row is None else RegistrationTokenRow(*row)

    async def get_registration_tokens(self, limit: int) -> list[RegistrationTokenRow]:
        """Return up to `limit` tokens in their own order."""

        def read(txn: Transaction) -> list[RegistrationTokenRow]:
            sql = f"SELECT {_COLUMNS} FROM registration_tokens ORDER BY token LIMIT ?"
            return [RegistrationTokenRow(*row) for row in txn.query(sql, (limit,))]

        return await self._database.read("get_registration_tokens", read)

    def set_limits(
        self, txn: WriteTransaction, token: str, uses_allowed: int | None, expires_ts: int | None
    ) -> None:
        """Set the number of uses and the expiry time of a token."""
        sql = "UPDATE registration_tokens SET uses_allowed = ?, expires_ts = ? WHERE token = ?"
        txn.execute(sql, (uses_allowed, expires_ts, token))

    def remove_registration_token(self, txn: WriteTransaction, token: str) -> bool:
        """Delete a token; return False if there is none. Pending registrations can be completed."""
        return bool(txn.execute("DELETE FROM registration_tokens WHERE token = ?", (token,)))

    def add_registration_token(self, txn: WriteTransaction, row: RegistrationTokenRow) -> bool:
        """Add a token; return False if it exists."""
        sql = (
            "INSERT INTO registration_tokens (token, uses_allowed, pending, completed, expires_ts)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        )
        return bool(
            txn.execute(
                sql, (row.token, row.uses_allowed, row.pending, row.completed, row.expires_ts)
            )
        )

    def add_pending(self, txn: WriteTransaction, token: str, now: int) -> bool:
        """Reserve a use; return False if the token is unknown, expired or used up."""
        return bool(
            txn.execute(
                "UPDATE registration_tokens SET pending = pending + 1 WHERE token = ?"
                " AND (expires_ts IS NULL OR expires_ts > ?)"
                " AND (uses_allowed IS NULL OR pending + completed < uses_allowed)",
                (token, now),
            )
        )

    def set_completed(self, txn: WriteTransaction, token: str) -> None:
        """Turn a reserved use into a completed one, if there is one."""
        sql = (
            "UPDATE registration_tokens SET pending = pending - 1, completed = completed + 1"
            " WHERE token = ? AND pending > 0"
        )
        txn.execute(sql, (token,))

    def remove_pending(self, txn: WriteTransaction, token: str) -> None:
        """Release a reserved use."""
        txn.execute(
            "UPDATE registration_tokens SET pending = pending - 1 WHERE token = ? AND pending > 0",
            (token,),
        )
