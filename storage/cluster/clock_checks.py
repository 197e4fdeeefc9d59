"""Stores the last check of the system clock, so that the next check can detect that the clock
jumped.
"""

from typing import Final

import msgspec

from storage.cluster.job_progress import select_job_progress, set_job_progress
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

NAME: Final = "clock_check"


class ClockCheck(msgspec.Struct, frozen=True):
    """The result of a clock check, in milliseconds since 1970."""

    checked_ms: int
    """The time of the last check, by the clock of that moment."""
    distrusted_since_ms: int | None = None
    """The time since which the clock is not trusted; None if it is trusted."""


class ClockCheckStore:
    """Stores the last clock check of any node."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self) -> ClockCheck | None:
        """Return the last check. Before the first, return the time of the newest event, or None if
        there is no event."""

        def read(txn: Transaction) -> ClockCheck | None:
            progress = select_job_progress(txn, NAME)
            if progress is not None:
                return msgspec.json.decode(progress, type=ClockCheck)
            row = txn.query_one(
                "SELECT origin_server_ts FROM events ORDER BY event_nid DESC LIMIT 1"
            )
            return None if row is None else ClockCheck(int(row[0]))

        return await self._database.read_quickly("get_clock_check", read)

    async def put(self, seen: ClockCheck) -> None:
        """Store the last check."""

        def write(txn: WriteTransaction) -> None:
            set_job_progress(txn, NAME, msgspec.json.encode(seen).decode())

        await self._database.write("put_clock_check", write)
