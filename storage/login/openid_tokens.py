"""Tokens with which people prove to other services who they are: kept as hashes, good until a time,
at most some a user."""

from typing import Final

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MOST_TOKENS: Final = 100
"""Of a user; with one more the oldest goes."""


class OpenIDTokenStore:
    """The table of these tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_user(self, token_hash: bytes, now: int) -> str | None:
        """Whose token it is; None for one that is unknown or no longer good."""

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
        """Keep one."""
        txn.execute(
            "INSERT INTO openid_tokens (token_hash, user_id, expires_ts) VALUES (?, ?, ?)",
            (token_hash, user_id, expires_ts),
        )
        rows = txn.query(
            "SELECT token_hash FROM openid_tokens WHERE user_id = ? ORDER BY expires_ts DESC LIMIT 100 OFFSET ?",
            (user_id, MOST_TOKENS),
        )
        if rows:
            txn.execute_many("DELETE FROM openid_tokens WHERE token_hash = ?", rows)

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove all of a user's."""
        txn.execute("DELETE FROM openid_tokens WHERE user_id = ?", (user_id,))

    async def remove_expired(self, now: int, limit: int) -> int:
        """Forget up to `limit` that are no longer good; how many."""

        def write(txn: WriteTransaction) -> int:
            rows = txn.query(
                "SELECT token_hash FROM openid_tokens WHERE expires_ts <= ? ORDER BY expires_ts LIMIT ?",
                (now, limit),
            )
            txn.execute_many("DELETE FROM openid_tokens WHERE token_hash = ?", rows)
            return len(rows)

        return await self._database.write("remove_expired_openid_tokens", write)
