"""What a database keeps."""

from storage.database import Database
from storage.transaction import Transaction


def everything_kept(txn: Transaction) -> str:
    """All rows of all tables of an SQLite database, as text."""
    names = [row[0] for row in txn.query("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    return "\n".join(f"{name}: {row!r}" for name in names for row in txn.query(f"SELECT * FROM {name}"))


async def read_everything(database: Database) -> str:
    """The same, of a database of SQLite."""
    return await database.read("everything", everything_kept)
