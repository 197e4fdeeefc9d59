"""Filters that clients uploaded. A filter never changes; the same filter uploaded again keeps its number."""

from hashlib import sha256

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction


class FilterStore:
    """The table of filters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_filter(self, user_id: str, filter_id: int) -> str | None:
        """The definition, as canonical JSON."""

        def read(txn: Transaction) -> str | None:
            sql = "SELECT definition FROM filters WHERE user_id = ? AND filter_id = ?"
            row = txn.query_one(sql, (user_id, filter_id))
            return None if row is None else str(row[0])

        return await self._database.read_quickly("get_filter", read)

    async def get_filter_id(self, user_id: str, definition: str) -> int | None:
        """The number under which the user has this filter."""
        return await self._database.read_quickly("get_filter_id", self._get_filter_id, user_id, definition)

    def get_sums(self, txn: Transaction, user_id: str) -> tuple[int, int]:
        """How many filters a user has, and how many characters all of them."""
        row = txn.query_one(
            "SELECT COUNT(*), COALESCE(SUM(length(definition)), 0) FROM filters WHERE user_id = ?", (user_id,)
        )
        return (0, 0) if row is None else (int(row[0]), int(row[1]))

    def add_filter(self, txn: WriteTransaction, user_id: str, definition: str) -> int:
        """Add it unless it is there; its number, from 0 on."""
        filter_id = self._get_filter_id(txn, user_id, definition)
        if filter_id is not None:
            return filter_id
        row = txn.query_one("SELECT COALESCE(MAX(filter_id) + 1, 0) FROM filters WHERE user_id = ?", (user_id,))
        number = 0 if row is None else int(row[0])
        txn.execute(
            "INSERT INTO filters (user_id, filter_id, definition, digest) VALUES (?, ?, ?, ?)",
            (user_id, number, definition, _digest(definition)),
        )
        return number

    def _get_filter_id(self, txn: Transaction, user_id: str, definition: str) -> int | None:
        row = txn.query_one(
            "SELECT filter_id FROM filters WHERE user_id = ? AND digest = ?", (user_id, _digest(definition))
        )
        return None if row is None else int(row[0])


def _digest(definition: str) -> bytes:
    return sha256(definition.encode()).digest()
