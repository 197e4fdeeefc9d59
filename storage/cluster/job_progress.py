"""The progress of background jobs: one text for each job, by name."""

from storage.engine.transaction import Transaction, WriteTransaction


def select_job_progress(txn: Transaction, name: str) -> str | None:
    """Return the progress of a job; None if it has none yet."""
    row = txn.query_one("SELECT progress FROM jobs WHERE name = ?", (name,))
    return None if row is None else str(row[0])


def set_job_progress(txn: WriteTransaction, name: str, progress: str) -> None:
    """Store the progress of a job. Replaces the previous one."""
    txn.execute(
        "INSERT INTO jobs (name, progress) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET progress = excluded.progress",
        (name, progress),
    )
