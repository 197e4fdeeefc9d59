"""Erased accounts, each with the position of its erasure. Rows are never deleted, because the
contents of an erased user's events stay hidden from users and servers that join later
(`federation/rooms/erased_senders.py`).
"""

from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction


class ErasureStore:
    """The table `erasures`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_erasures_since(self, position: int) -> dict[str, int]:
        """Return the users erased after a position, with the position of each."""

        def read(txn: Transaction) -> dict[str, int]:
            rows = txn.query(
                "SELECT user_id, position FROM erasures WHERE position > ?", (position,)
            )
            return {row[0]: row[1] for row in rows}

        return await self._database.read_quickly("get_erasures", read)


def add_erasure(txn: WriteTransaction, user_id: str) -> None:
    """Mark an account as erased and announce it; an earlier erasure stays."""
    position = txn.next_position()
    sql = "INSERT INTO erasures (user_id, position) VALUES (?, ?) ON CONFLICT DO NOTHING"
    if txn.execute(sql, (user_id, position)):
        txn.announce(Change(position, Topic.ERASURE, user_id=user_id))
