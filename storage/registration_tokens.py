"""Tokens that let their holder register, each good for a number of accounts and a time.

A use is first *pending* (the holder has shown the token, and may yet give up) and then *completed*. Both count against
the number allowed, so that a token for one account never makes two.

spec: client-server-api#token-authenticated-registration
"""

import msgspec

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction


class RegistrationTokenRow(msgspec.Struct, frozen=True):
    """One token. `uses_allowed` None: any number. Times are milliseconds since 1970."""

    token: str
    uses_allowed: int | None = None
    pending: int = 0
    completed: int = 0
    expires_ts: int | None = None


class RegistrationTokenStore:
    """The table of registration tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_registration_token(self, token: str) -> RegistrationTokenRow | None:
        """One token, valid or not."""

        def read(txn: Transaction) -> RegistrationTokenRow | None:
            row = txn.query_one(
                "SELECT token, uses_allowed, pending, completed, expires_ts FROM registration_tokens WHERE token = ?",
                (token,),
            )
            return None if row is None else RegistrationTokenRow(*row)

        return await self._database.read_quickly("get_registration_token", read)

    def add_registration_token(self, txn: WriteTransaction, row: RegistrationTokenRow) -> bool:
        """Make one; False where the token exists."""
        sql = (
            "INSERT INTO registration_tokens (token, uses_allowed, pending, completed, expires_ts)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        )
        return bool(txn.execute(sql, (row.token, row.uses_allowed, row.pending, row.completed, row.expires_ts)))

    def add_pending(self, txn: WriteTransaction, token: str, now: int) -> bool:
        """Hold back one use; False where the token is unknown, expired or used up."""
        return bool(
            txn.execute(
                "UPDATE registration_tokens SET pending = pending + 1 WHERE token = ?"
                " AND (expires_ts IS NULL OR expires_ts > ?)"
                " AND (uses_allowed IS NULL OR pending + completed < uses_allowed)",
                (token, now),
            )
        )

    def set_completed(self, txn: WriteTransaction, token: str) -> None:
        """A use that was held back has made an account."""
        sql = "UPDATE registration_tokens SET pending = pending - 1, completed = completed + 1 WHERE token = ?"
        txn.execute(sql, (token,))

    def remove_pending(self, txn: WriteTransaction, token: str) -> None:
        """A use that was held back came to nothing."""
        txn.execute("UPDATE registration_tokens SET pending = pending - 1 WHERE token = ? AND pending > 0", (token,))
