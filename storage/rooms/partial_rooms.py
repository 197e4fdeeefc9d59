"""Rooms that were joined with partial state: how much of the full state has been fetched, and the
events stored since the join.

The head of a room says whether its state is partial now. A write that changes this in the head also
changes the tables of this module.

The tables keep the position from which the state is complete (`completed_position`). Some clients
do not see a room while its state is partial. They get the complete room when they sync past that
position.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class PartialRoom(msgspec.Struct, frozen=True):
    """A room that was joined with partial state."""

    room_nid: int
    join_nid: int
    """The number of our join event."""
    position: int
    """The position of the join."""
    resident_server: str
    """The server that answered `send_join`."""
    completed_position: int | None
    """The position from which the state is complete, or from which nobody waits for it: no local
    user is joined, or no server sends it."""


class PartialEvent(msgspec.Struct, frozen=True):
    """An event that was stored with partial state."""

    ordinal: int
    event_nid: int
    is_backfilled: bool
    has_gap: bool


_COLUMNS = "room_nid, join_nid, position, resident_server, completed_position"


class PartialRoomStore:
    """Reads these tables, and takes the lease on the completion of a room."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_rooms(self) -> list[PartialRoom]:
        """Return all rooms that were joined with partial state, completed ones included."""
        return await self._database.read_quickly("get_partial_rooms", _select_rooms)

    async def get_fetched_root(self, room_nid: int) -> bytes | None:
        """Return the root of the part that has been fetched of the state before the join."""
        return await self._database.read_quickly("get_fetched_state", select_fetched_root, room_nid)

    async def get_servers(self, room_nid: int) -> list[str]:
        """Return the servers in the room at our join, as listed by `send_join`."""
        return await self._database.read_quickly("get_partial_servers", _select_servers, room_nid)

    async def get_events(self, room_nid: int, after: int, limit: int) -> list[PartialEvent]:
        """Return events that were stored with partial state, in the order of storage."""
        return await self._database.read(
            "get_partial_events", _select_events, room_nid, after, limit
        )

    async def take_lease(self, room_nid: int, until_ms: int) -> None:
        """Record that this node works on the room until then."""
        await self._database.write("lease_partial_room", _set_lease, room_nid, until_ms)

    async def is_unleased(self, room_nid: int, now_ms: int) -> bool:
        """Whether no node holds a lease on the room."""
        return await self._database.read_quickly(
            "is_partial_room_unleased", _is_free, room_nid, now_ms
        )

    async def has_events(self, room_nid: int) -> bool:
        """Whether the room has events that were stored with partial state."""
        return bool(await self.get_events(room_nid, 0, 1))

    async def get_incomplete(self) -> list[int]:
        """Return the rooms with partial state. Excludes those that all local users have left and
        whose completion was abandoned."""
        return await self._database.read("get_incomplete_rooms", _select_incomplete)

    async def count_incomplete(self) -> int:
        """Count the rooms whose state is partial."""
        return await self._database.read("count_partial_rooms", _count_incomplete)


def add_partial_join(
    txn: WriteTransaction,
    room_nid: int,
    join_nid: int,
    position: int,
    resident: str,
    servers: Iterable[str],
) -> PartialRoom:
    """Record that the room is joined with partial state. The caller deletes earlier rows first."""
    txn.execute(
        "INSERT INTO partial_rooms (room_nid, join_nid, position, resident_server)"
        " VALUES (?, ?, ?, ?)",
        (room_nid, join_nid, position, resident),
    )
    txn.execute_many(
        "INSERT INTO partial_servers (room_nid, server) VALUES (?, ?)",
        [(room_nid, server) for server in dict.fromkeys(servers)],
    )
    return PartialRoom(room_nid, join_nid, position, resident, None)


def delete_partial_join(txn: WriteTransaction, room_nid: int) -> None:
    """Delete the record of a partial join: the room has been left, or is joined again.

    Events stored meanwhile stay recorded as past events: the known state at them is still partial.
    """
    for table in ("partial_rooms", "partial_servers"):
        txn.execute(f"DELETE FROM {table} WHERE room_nid = ?", (room_nid,))
    txn.execute("UPDATE partial_events SET is_backfilled = 1 WHERE room_nid = ?", (room_nid,))


def abandon_partial_join(txn: WriteTransaction, room_nid: int, position: int) -> None:
    """Record that nobody waits for the state: all local users have left the room, or no server
    sends it. The servers in the room stay known, since they must receive our events."""
    txn.execute(
        "UPDATE partial_rooms SET completed_position = ?, fetched_root = NULL WHERE room_nid = ?",
        (position, room_nid),
    )


def complete_partial_join(txn: WriteTransaction, room_nid: int, position: int) -> None:
    """Record that the state is complete from a position on."""
    txn.execute(
        "UPDATE partial_rooms SET completed_position = ?, fetched_root = NULL WHERE room_nid = ?",
        (position, room_nid),
    )
    for table in ("partial_servers", "partial_events"):
        txn.execute(f"DELETE FROM {table} WHERE room_nid = ?", (room_nid,))


def record_completion(
    txn: WriteTransaction, room_nid: int, event_nid: int, position: int
) -> PartialRoom:
    """Record that more of a room's state is known from a position on. `event_nid` is any event of
    the room."""
    txn.execute(
        "INSERT INTO partial_rooms (room_nid, join_nid, position, resident_server,"
        " completed_position)"
        " VALUES (?, ?, ?, '', ?)"
        " ON CONFLICT (room_nid) DO UPDATE SET completed_position = excluded.completed_position",
        (room_nid, event_nid, position, position),
    )
    return PartialRoom(room_nid, event_nid, position, "", position)


def add_partial_events(
    txn: WriteTransaction,
    room_nid: int,
    events: Sequence[tuple[int, bool]],
    *,
    is_past: bool = False,
) -> None:
    """Record events (number, whether its state is assumed) that are stored with partial state."""
    first = txn.allocate("partial_event", len(events))
    txn.execute_many(
        "INSERT INTO partial_events (room_nid, ordinal, event_nid, is_backfilled, has_gap)"
        " VALUES (?, ?, ?, ?, ?)",
        [
            (room_nid, first + index, event_nid, int(is_past), int(has_gap))
            for index, (event_nid, has_gap) in enumerate(events)
        ],
    )


class CompletedEventRow(msgspec.Struct, frozen=True):
    """The columns of `events` that depend on the state, recomputed from the complete state."""

    flags: int
    state_root: bytes | None
    replaces: int | None
    current_root: bytes | None


def set_completed_events(
    txn: WriteTransaction, room_nid: int, rows: Mapping[int, CompletedEventRow]
) -> None:
    """Store the recomputed columns of events, by their ordinal."""
    txn.execute_many(
        "UPDATE partial_events SET flags = ?, state_root = ?, replaces = ?, current_root = ?"
        " WHERE room_nid = ? AND ordinal = ?",
        [
            (row.flags, row.state_root, row.replaces, row.current_root, room_nid, ordinal)
            for ordinal, row in rows.items()
        ],
    )


def set_fetched_root(txn: WriteTransaction, room_nid: int, root: bytes | None) -> None:
    """Store the root of the fetched part of the state."""
    txn.execute("UPDATE partial_rooms SET fetched_root = ? WHERE room_nid = ?", (root, room_nid))


def select_fetched_root(txn: Transaction, room_nid: int) -> bytes | None:
    """Do `get_fetched_root` in a transaction."""
    row = txn.query_one("SELECT fetched_root FROM partial_rooms WHERE room_nid = ?", (room_nid,))
    return None if row is None or row[0] is None else bytes(row[0])


def select_partial_roots(txn: Transaction, room_nid: int) -> set[bytes]:
    """Return the state roots that these tables refer to."""
    rows = txn.query(
        "SELECT fetched_root FROM partial_rooms WHERE room_nid = ? AND fetched_root IS NOT NULL"
        " UNION SELECT state_root FROM partial_events WHERE room_nid = ? AND state_root IS NOT NULL"
        " UNION SELECT current_root FROM partial_events"
        " WHERE room_nid = ? AND current_root IS NOT NULL",
        (room_nid, room_nid, room_nid),
    )
    return {bytes(root) for (root,) in rows}


def _select_rooms(txn: Transaction) -> list[PartialRoom]:
    return [PartialRoom(*row) for row in txn.query(f"SELECT {_COLUMNS} FROM partial_rooms")]


def _select_servers(txn: Transaction, room_nid: int) -> list[str]:
    rows = txn.query(
        "SELECT server FROM partial_servers WHERE room_nid = ? ORDER BY server", (room_nid,)
    )
    return [server for (server,) in rows]


def _select_events(txn: Transaction, room_nid: int, after: int, limit: int) -> list[PartialEvent]:
    rows = txn.query(
        "SELECT ordinal, event_nid, is_backfilled, has_gap FROM partial_events"
        " WHERE room_nid = ? AND ordinal > ?"
        " ORDER BY ordinal LIMIT ?",
        (room_nid, after, limit),
    )
    return [
        PartialEvent(ordinal, nid, bool(is_backfilled), bool(has_gap))
        for ordinal, nid, is_backfilled, has_gap in rows
    ]


def _set_lease(txn: WriteTransaction, room_nid: int, until_ms: int) -> None:
    txn.execute(
        "UPDATE partial_rooms SET leased_until = ? WHERE room_nid = ?", (until_ms, room_nid)
    )


def _is_free(txn: Transaction, room_nid: int, now_ms: int) -> bool:
    row = txn.query_one(
        "SELECT 1 FROM partial_rooms WHERE room_nid = ? AND leased_until > ?", (room_nid, now_ms)
    )
    return row is None


def _select_incomplete(txn: Transaction) -> list[int]:
    rows = txn.query(
        "SELECT p.room_nid FROM partial_rooms AS p JOIN rooms AS r ON r.room_nid = p.room_nid"
        " WHERE r.partial_join IS NOT NULL AND (p.completed_position IS NULL OR"
        " EXISTS (SELECT 1 FROM memberships AS m"
        " WHERE m.room_nid = p.room_nid AND m.membership = 'join' AND m.is_local = 1))"
        " ORDER BY p.room_nid"
    )
    return [room_nid for (room_nid,) in rows]


def _count_incomplete(txn: Transaction) -> int:
    row = txn.query_one("SELECT count(*) FROM partial_rooms WHERE completed_position IS NULL")
    assert row is not None
    count: int = row[0]
    return count
