"""Reads events for the audit of stored room states, and stores its progress.

The audit (`federation/rooms/state_audit.py`) recomputes states and compares them with the stored
ones. The audit covers only rooms with remote servers, and none with partial state. In these rooms
it covers local and remote events, but no rejected, soft-failed or backfilled ones.
"""

from collections.abc import Iterable, Mapping

import msgspec

from storage.cluster.job_progress import select_job_progress, set_job_progress
from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction


class AuditedEvent(msgspec.Struct, frozen=True):
    """A stored event and the state after it."""

    event_nid: int
    room_nid: int
    event_id: str
    position: int | None
    """None for an event that was rejected, soft-failed or backfilled."""
    type: str
    state_key: str | None
    flags: int
    state_root: bytes | None


_COLUMNS = "event_nid, room_nid, event_id, position, type, state_key, flags, state_root"
_SELECT_ARRIVED = f"""
    SELECT {_COLUMNS}, pdu FROM events
    WHERE event_nid > ? AND event_nid <= ? AND position IS NOT NULL
    AND room_nid IN (SELECT room_nid FROM room_servers)
    AND room_nid NOT IN (SELECT room_nid FROM partial_rooms WHERE completed_position IS NULL)
    AND room_nid NOT IN (SELECT room_nid FROM partial_events)
"""


class StateAuditStore:
    """Reads for the audit, and stores its progress."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_arrived(self, after: int, upto: int) -> list[tuple[AuditedEvent, bytes]]:
        """Return the events to audit with numbers above `after`, up to `upto`, with their PDUs."""
        return await self._database.read("get_events_to_audit", _select_arrived, after, upto)

    async def get_events(self, event_ids: Iterable[str]) -> Mapping[str, AuditedEvent]:
        """Return events by ID. Unknown ones are missing."""
        return await self._database.read("get_placed_events", _select_by_id, list(event_ids))

    async def get_latest_nid(self) -> int:
        """Return the highest event number; 0 if there is no event."""
        return await self._database.read("get_latest_event_nid", _select_latest)

    async def get_progress(self, name: str) -> str | None:
        """Return the progress of the audit; None before it has begun."""
        return await self._database.read_quickly(
            "get_state_audit_progress", select_job_progress, name
        )

    async def advance_progress(self, name: str, expected: str | None, progress: str) -> bool:
        """Store the progress of the audit, unless another node has advanced it. Return whether it
        was stored."""

        def move(txn: WriteTransaction) -> bool:
            if select_job_progress(txn, name) != expected:
                return False
            set_job_progress(txn, name, progress)
            return True

        return await self._database.write("advance_state_audit", move)


def _select_arrived(txn: Transaction, after: int, upto: int) -> list[tuple[AuditedEvent, bytes]]:
    return [
        (_make_event(row[:8]), bytes(row[8])) for row in txn.query(_SELECT_ARRIVED, (after, upto))
    ]


def _select_by_id(txn: Transaction, event_ids: list[str]) -> dict[str, AuditedEvent]:
    rows = txn.query_in(f"SELECT {_COLUMNS} FROM events WHERE event_id IN {{keys}}", event_ids)
    return {row[2]: _make_event(row) for row in rows}


def _select_latest(txn: Transaction) -> int:
    row = txn.query_one("SELECT max(event_nid) FROM events")
    return 0 if row is None or row[0] is None else int(row[0])


def _make_event(row: Row) -> AuditedEvent:
    nid, room_nid, event_id, position, type, state_key, flags, root = row
    return AuditedEvent(
        nid,
        room_nid,
        event_id,
        position,
        type,
        state_key,
        flags,
        None if root is None else bytes(root),
    )
