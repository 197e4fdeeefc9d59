"""Reads the complete contents of an SQLite database."""

from storage.engine.database import Database
from storage.engine.transaction import Transaction


def everything_kept(txn: Transaction) -> str:
    """Return all rows of all tables of an SQLite database, as text."""
    # virtual tables of the full-text index only show rows of its other tables
    stored = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"
    names = [row[0] for row in txn.query(stored)]
    return "\n".join(
        f"{name}: {row!r}" for name in names for row in txn.query(f"SELECT * FROM {name}")
    )


async def read_everything(database: Database) -> str:
    """Return all rows of all tables of an SQLite database, as text."""
    return await database.read("everything", everything_kept)
