"""What jobs note of how far they are: a text each, by the job's name."""

from storage.engine.transaction import Transaction, WriteTransaction


def select_note(txn: Transaction, name: str) -> str | None:
    """The note of a job; None before it has any."""
    row = txn.query_one("SELECT progress FROM jobs WHERE name = ?", (name,))
    return None if row is None else str(row[0])


def put_note(txn: WriteTransaction, name: str, progress: str) -> None:
    """Write a note over whatever was there."""
    txn.execute(
        "INSERT INTO jobs (name, progress) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET progress = excluded.progress",
        (name, progress),
    )
