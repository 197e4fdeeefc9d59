"""Tokens with which somebody signs in once, within minutes. Kept as hashes; what has grown old is
swept."""

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.upstream.sessions import SignIns, sign_in_of


class LoginTokenRow(msgspec.Struct, frozen=True):
    """A token that was taken. `origin`: JSON, the sign-in at an identity provider that it stands
    for; `era`: of the account, when the token was given."""

    user_id: str
    origin: str | None
    era: int


class LoginTokenStore:
    """The table of login tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_login_token(
        self,
        txn: WriteTransaction,
        token_hash: bytes,
        user_id: str,
        expires_ts: int,
        origin: str | None = None,
    ) -> None:
        """Make one, in this era of the account. `expires_ts`: milliseconds since 1970."""
        sql = (
            "INSERT INTO login_tokens (token_hash, user_id, expires_ts, origin, sign_in, era)"
            " SELECT ?, user_id, ?, ?, ?, era FROM accounts WHERE user_id = ?"
        )
        txn.execute(sql, (token_hash, expires_ts, origin, sign_in_of(origin), user_id))

    async def take_login_token(self, token_hash: bytes, now: int) -> LoginTokenRow | None:
        """Whom it is for, and its end: nobody else finds it again. None where there is no such
        token any more."""

        def write(txn: WriteTransaction) -> LoginTokenRow | None:
            sql = "DELETE FROM login_tokens WHERE token_hash = ? RETURNING user_id, expires_ts, origin, era"
            row = txn.query_one(sql, (token_hash,))
            return None if row is None or row[1] <= now else LoginTokenRow(row[0], row[2], row[3])

        return await self._database.write("take_login_token", write)

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """End those of a user."""
        txn.execute("DELETE FROM login_tokens WHERE user_id = ?", (user_id,))

    def remove_sign_ins(self, txn: WriteTransaction, sign_ins: SignIns) -> None:
        """End those of a sign-in at a provider."""
        condition, values = sign_ins.where()
        txn.execute(f"DELETE FROM login_tokens WHERE {condition}", values)

    async def remove_old(self, now: int, limit: int) -> int:
        """Remove up to `limit` that have expired; how many."""

        def write(txn: WriteTransaction) -> int:
            sql = (
                "DELETE FROM login_tokens WHERE token_hash IN"
                " (SELECT token_hash FROM login_tokens WHERE expires_ts <= ? LIMIT ?)"
            )
            return txn.execute(sql, (now, limit))

        return await self._database.write("remove_old_login_tokens", write)
