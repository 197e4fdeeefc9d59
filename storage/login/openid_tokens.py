"""OpenID tokens, which prove a user's identity to other services.

They are stored as hashes, with an expiry time. Their number per user is limited.
"""

from typing import Final

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MAX_TOKENS: Final = 100
"""Maximum per user; a further token replaces the oldest."""


class OpenIDTokenStore:
    """The table `openid_tokens`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_user(self, token_hash: bytes, now: int) -> str | None:
        """Return the owner of a token; None if it is unknown or expired."""

        def read(txn: Transaction) -> str | None:
            row = txn.query_one(
                "SELECT user_id FROM openid_tokens WHERE token_hash = ? AND expires_ts > ?",
                (token_hash, now),
            )
            return None if row is None else str(row[0])

        return await self._database.read_quickly("get_openid_token", read)

    def add_token(
        self, txn: WriteTransaction, token_hash: bytes, user_id: str, expires_ts: int
    ) -> None:
        """Add a token; remove the oldest ones of the user above the maximum."""
        txn.execute(
            "INSERT INTO openid_tokens (token_hash, user_id, expires_ts) VALUES (?, ?, ?)",
            (token_hash, user_id, expires_ts),
        )
        rows = txn.query(
            "SELECT token_hash FROM openid_tokens WHERE user_id = ? ORDER BY expires_ts DESC"
            " LIMIT 100 OFFSET ?",
            (user_id, MAX_TOKENS),
        )
        if rows:
            txn.execute_many("DELETE FROM openid_tokens WHERE token_hash = ?", rows)

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove the tokens of a user."""
        txn.execute("DELETE FROM openid_tokens WHERE user_id = ?", (user_id,))

    async def remove_expired(self, now: int, limit: int) -> int:
        """Remove up to `limit` expired tokens; return the number."""

        def write(txn: WriteTransaction) -> int:
            rows = txn.query(
                "SELECT token_hash FROM openid_tokens WHERE expires_ts <= ?"
                " ORDER BY expires_ts LIMIT ?",
                (now, limit),
            )
            txn.execute_many("DELETE FROM openid_tokens WHERE token_hash = ?", rows)
            return len(rows)

        return await self._database.write("remove_expired_openid_tokens", write)
