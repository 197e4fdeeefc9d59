"""Reads the complete contents of an SQLite database."""

from storage.engine.database import Database
from storage.engine.transaction import Transaction


def dump_rows(txn: Transaction) -> str:
    """Return all rows of all tables of an SQLite database, as text."""
    # virtual tables of the full-text index only show rows of its other tables
    stored = (
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE"
        " VIRTUAL%' ORDER BY name"
    )
    names = [row[0] for row in txn.query(stored)]
    return "\n".join(
        f"{name}: {row!r}" for name in names for row in txn.query(f"SELECT * FROM {name}")
    )


async def dump_database(database: Database) -> str:
    """Return all rows of all tables of an SQLite database, as text."""
    return await database.read("everything", dump_rows)
