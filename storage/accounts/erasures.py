"""Accounts that were erased, and when; a row stays for good."""

from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction


class ErasureStore:
    """The table `erasures`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_since(self, position: int) -> dict[str, int]:
        """Who was erased after a position, and at which."""

        def read(txn: Transaction) -> dict[str, int]:
            rows = txn.query(
                "SELECT user_id, position FROM erasures WHERE position > ?", (position,)
            )
            return {row[0]: row[1] for row in rows}

        return await self._database.read_quickly("get_erasures", read)


def add_erasure(txn: WriteTransaction, user_id: str) -> None:
    """An account is erased from now on; the first time counts."""
    position = txn.next_position()
    sql = "INSERT INTO erasures (user_id, position) VALUES (?, ?) ON CONFLICT DO NOTHING"
    if txn.execute(sql, (user_id, position)):
        txn.announce(Change(position, Topic.ERASURE, user_id=user_id))
