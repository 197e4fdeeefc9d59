"""Events that are told to everyone in their room for a while: which they are, and until when.

Laws:
- A row is written with the event, and goes with its content (a redaction) or after its time.
- Each has a position (`Topic.STICKY`): its arrival, or a new one where the event came from the past.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from storage.database import Database
from storage.streams import Change, Topic
from storage.transaction import Transaction, WriteTransaction

LONGEST_MS: Final = 3_600_000
"""However long an event says that it is sticky."""


@dataclass(frozen=True, slots=True)
class StickyRow:
    """A sticky event."""

    event_nid: int
    room_nid: int
    sender: str
    position: int
    expires_ts: int
    """Milliseconds since 1970."""


_COLUMNS = "event_nid, room_nid, sender, position, expires_ts"


class StickyEventStore:
    """Readers of the table, and the forgetting of what is over."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_unexpired(self, now_ms: int) -> list[StickyRow]:
        """All that are sticky now, by position."""

        def read(txn: Transaction) -> list[StickyRow]:
            sql = f"SELECT {_COLUMNS} FROM sticky_events WHERE expires_ts > ? ORDER BY position"
            return [StickyRow(*row) for row in txn.query(sql, (now_ms,))]

        return await self._database.read("get_sticky_events", read)

    async def remove_expired(self, now_ms: int, limit: int) -> int:
        """Remove up to `limit` that are over; how many."""

        def write(txn: WriteTransaction) -> int:
            sql = "SELECT event_nid FROM sticky_events WHERE expires_ts <= ? ORDER BY expires_ts LIMIT ?"
            nids = txn.query(sql, (now_ms, limit))
            txn.execute_many("DELETE FROM sticky_events WHERE event_nid = ?", nids)
            return len(nids)

        return await self._database.write("remove_sticky_events", write)


def add_sticky_events(txn: WriteTransaction, room_id: str, rows: Sequence[StickyRow]) -> None:
    """Note sticky events, as they are stored."""
    txn.execute_many(
        f"INSERT INTO sticky_events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(row.event_nid, row.room_nid, row.sender, row.position, row.expires_ts) for row in rows],
    )
    for row in rows:
        txn.announce(Change(row.position, Topic.STICKY, room_id=room_id, detail=row))


def remove_sticky_event(txn: WriteTransaction, event_nid: int) -> None:
    """A redacted event is an ordinary one."""
    txn.execute("DELETE FROM sticky_events WHERE event_nid = ?", (event_nid,))
