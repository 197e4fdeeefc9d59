"""What the clock said before: by that it is seen whether what it says now can be believed."""

from typing import Final

import msgspec

from storage.cluster.job_progress import put_note, select_note
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

NAME: Final = "believed_time"


class SeenTime(msgspec.Struct, frozen=True):
    """Milliseconds since 1970."""

    seen_ms: int
    """When somebody last looked, by the clock of that time."""
    doubted_since_ms: int | None = None
    """Since when the clock is not believed; None: it is."""


class SeenTimeStore:
    """One note, of whichever node looked last."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self) -> SeenTime | None:
        """The note; before there is one, the time of the newest event; None before there is any."""

        def read(txn: Transaction) -> SeenTime | None:
            note = select_note(txn, NAME)
            if note is not None:
                return msgspec.json.decode(note, type=SeenTime)
            row = txn.query_one(
                "SELECT origin_server_ts FROM events ORDER BY event_nid DESC LIMIT 1"
            )
            return None if row is None else SeenTime(int(row[0]))

        return await self._database.read_quickly("get_seen_time", read)

    async def put(self, seen: SeenTime) -> None:
        """Note it."""

        def write(txn: WriteTransaction) -> None:
            put_note(txn, NAME, msgspec.json.encode(seen).decode())

        await self._database.write("note_seen_time", write)
