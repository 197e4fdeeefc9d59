"""Sticky events (MSC4354): events that are delivered to all users in their room until they expire.

Laws:
- A row is written with the event. It is deleted when the event is redacted or purged, or after its
  expiry.
- Each row has a position (`Topic.STICKY`): the position of the event's arrival, or a new one for a
  backfilled event.
- A soft-failed event is held (not delivered) until a later check against the current state allows
  it. Then it takes a new position.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction

MAX_STICKY_MS: Final = 3_600_000
"""The limit of the duration that an event may claim."""


class StickyRow(msgspec.Struct, frozen=True):
    """A sticky event."""

    event_nid: int
    room_nid: int
    sender: str
    position: int
    expires_ts: int
    """Milliseconds since 1970."""
    is_held: bool = False
    """It is soft-failed, and held back."""


_COLUMNS = "event_nid, room_nid, sender, position, expires_ts, is_held"


class StickyEventStore:
    """Reads, releases and cleans up the table `sticky_events`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_unexpired(self, now_ms: int) -> list[StickyRow]:
        """Return all events that are sticky now, by position."""

        def read(txn: Transaction) -> list[StickyRow]:
            sql = (
                f"SELECT {_COLUMNS} FROM sticky_events WHERE expires_ts > ? AND is_held = 0"
                " ORDER BY position"
            )
            return [_row(row) for row in txn.query(sql, (now_ms,))]

        return await self._database.read("get_sticky_events", read)

    async def get_held(self, room_nid: int, sender: str, now_ms: int) -> list[StickyRow]:
        """Return a sender's held events in a room that have not expired."""

        def read(txn: Transaction) -> list[StickyRow]:
            sql = (
                f"SELECT {_COLUMNS} FROM sticky_events"
                " WHERE room_nid = ? AND sender = ? AND is_held = 1"
                " AND expires_ts > ? ORDER BY position"
            )
            return [_row(row) for row in txn.query(sql, (room_nid, sender, now_ms))]

        return await self._database.read_quickly("get_held_sticky_events", read)

    async def get_senders_of_held(self, now_ms: int) -> set[tuple[int, str]]:
        """Return the rooms and senders of all held events."""

        def read(txn: Transaction) -> set[tuple[int, str]]:
            sql = (
                "SELECT DISTINCT room_nid, sender FROM sticky_events"
                " WHERE is_held = 1 AND expires_ts > ?"
            )
            return {(room_nid, sender) for room_nid, sender in txn.query(sql, (now_ms,))}

        return await self._database.read("get_senders_of_held_sticky_events", read)

    async def release(self, room_id: str, rows: Sequence[StickyRow]) -> None:
        """Deliver these held events from now on."""

        def write(txn: WriteTransaction) -> None:
            for row in rows:
                _release(txn, room_id, row, txn.next_position())

        await self._database.write("release_sticky_events", write)

    async def remove_expired(self, now_ms: int, limit: int) -> int:
        """Delete up to `limit` expired rows. Return how many."""

        def write(txn: WriteTransaction) -> int:
            sql = (
                "SELECT event_nid FROM sticky_events WHERE expires_ts <= ?"
                " ORDER BY expires_ts LIMIT ?"
            )
            nids = txn.query(sql, (now_ms, limit))
            txn.execute_many("DELETE FROM sticky_events WHERE event_nid = ?", nids)
            return len(nids)

        return await self._database.write("remove_sticky_events", write)


def add_sticky_events(txn: WriteTransaction, room_id: str, rows: Sequence[StickyRow]) -> None:
    """Add sticky events in the write that stores them."""
    txn.execute_many(
        f"INSERT INTO sticky_events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            (
                row.event_nid,
                row.room_nid,
                row.sender,
                row.position,
                row.expires_ts,
                int(row.is_held),
            )
            for row in rows
        ],
    )
    for row in rows:
        txn.announce(Change(row.position, Topic.STICKY, room_id=room_id, detail=row))


def release_sticky_events(
    txn: WriteTransaction, room_id: str, event_nids: Sequence[int], positions: Mapping[int, int]
) -> None:
    """Deliver those of the events that are held, since they are no longer soft-failed. Arriving
    events use their positions."""
    rows = txn.query_in(
        f"SELECT {_COLUMNS} FROM sticky_events WHERE is_held = 1 AND event_nid IN {{keys}}",
        event_nids,
    )
    for row in sorted(map(_row, rows), key=lambda row: row.position):
        position = positions.get(row.event_nid)
        _release(txn, room_id, row, txn.next_position() if position is None else position)


def _release(txn: WriteTransaction, room_id: str, row: StickyRow, position: int) -> None:
    sql = "UPDATE sticky_events SET is_held = 0, position = ? WHERE event_nid = ? AND is_held = 1"
    if txn.execute(sql, (position, row.event_nid)):
        released = replace(row, position=position, is_held=False)
        txn.announce(Change(position, Topic.STICKY, room_id=room_id, detail=released))


def remove_sticky_event(txn: WriteTransaction, event_nid: int) -> None:
    """Make a redacted event an ordinary one."""
    txn.execute("DELETE FROM sticky_events WHERE event_nid = ?", (event_nid,))


def remove_sticky_events(txn: WriteTransaction, event_nids: Sequence[int]) -> None:
    """Make several events ordinary ones."""
    txn.execute_many(
        "DELETE FROM sticky_events WHERE event_nid = ?", [(nid,) for nid in event_nids]
    )


def _row(row: tuple[int, int, str, int, int, int]) -> StickyRow:
    nid, room_nid, sender, position, expires_ts, is_held = row
    return StickyRow(nid, room_nid, sender, position, expires_ts, bool(is_held))
