"""Login tokens. Each is valid for one sign-in, within some minutes. They are stored as hashes."""

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.upstream.sessions import ProviderSessions, upstream_key


class LoginTokenRow(msgspec.Struct, frozen=True):
    """A used token. `upstream_login`: the sign-in at an identity provider from which it came, as
    JSON. `epoch`: the credential epoch of the account when the token was issued."""

    user_id: str
    upstream_login: str | None
    epoch: int


class LoginTokenStore:
    """The table `login_tokens`."""

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
        """Add a token in the current credential epoch. `expires_ts`: milliseconds since 1970."""
        sql = (
            "INSERT INTO login_tokens (token_hash, user_id, expires_ts, upstream_login,"
            " upstream_key, credential_epoch)"
            " SELECT ?, user_id, ?, ?, ?, credential_epoch FROM accounts WHERE user_id = ?"
        )
        txn.execute(sql, (token_hash, expires_ts, origin, upstream_key(origin), user_id))

    async def take_login_token(self, token_hash: bytes, now: int) -> LoginTokenRow | None:
        """Remove a token and return it; None if it is unknown, used or expired."""

        def write(txn: WriteTransaction) -> LoginTokenRow | None:
            sql = (
                "DELETE FROM login_tokens WHERE token_hash = ?"
                " RETURNING user_id, expires_ts, upstream_login, credential_epoch"
            )
            row = txn.query_one(sql, (token_hash,))
            return None if row is None or row[1] <= now else LoginTokenRow(row[0], row[2], row[3])

        return await self._database.write("take_login_token", write)

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove the tokens of a user."""
        txn.execute("DELETE FROM login_tokens WHERE user_id = ?", (user_id,))

    def remove_provider_sessions(self, txn: WriteTransaction, sign_ins: ProviderSessions) -> None:
        """Remove the tokens of sign-ins at a provider."""
        condition, values = sign_ins.where()
        txn.execute(f"DELETE FROM login_tokens WHERE {condition}", values)

    async def remove_old(self, now: int, limit: int) -> int:
        """Remove up to `limit` expired tokens; return the number."""

        def write(txn: WriteTransaction) -> int:
            sql = (
                "DELETE FROM login_tokens WHERE token_hash IN"
                " (SELECT token_hash FROM login_tokens WHERE expires_ts <= ? LIMIT ?)"
            )
            return txn.execute(sql, (now, limit))

        return await self._database.write("remove_old_login_tokens", write)
