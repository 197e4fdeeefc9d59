"""Read what a database stores."""

from storage.engine.database import Database
from storage.engine.transaction import Transaction


def everything_kept(txn: Transaction) -> str:
    """All rows of all tables of an SQLite database, as text."""
    # of what an index of texts shows, the tables behind it have it all
    stored = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"
    names = [row[0] for row in txn.query(stored)]
    return "\n".join(
        f"{name}: {row!r}" for name in names for row in txn.query(f"SELECT * FROM {name}")
    )


async def read_everything(database: Database) -> str:
    """The same, of a database of SQLite."""
    return await database.read("everything", everything_kept)
