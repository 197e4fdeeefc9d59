"""Rooms that were entered with a part of their state: how far the rest has come, and what was
placed meanwhile.

Whether a room is such a room now stands in its head, with which it changes. Here is what is needed
to complete it, and since when it is complete, which is kept: a client that was told nothing of the
room before has to be told all of it then.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class PartialRoom(msgspec.Struct, frozen=True):
    """A room that was entered with a part of its state."""

    room_nid: int
    join_nid: int
    """The join by which it was entered."""
    position: int
    """Of the join."""
    resident: str
    """The server that let us in."""
    completed: int | None
    """The position from which on all of its state is known, or nobody waits for it: none of ours is
    there, or nobody tells it."""


class PartialEvent(msgspec.Struct, frozen=True):
    """An event that was placed upon a part of the state."""

    place: int
    event_nid: int
    is_past: bool
    has_gap: bool


_COLUMNS = "room_nid, join_nid, position, resident, completed"


class PartialRoomStore:
    """Readers of these tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_rooms(self) -> list[PartialRoom]:
        """All rooms that were entered so, the complete ones too."""
        return await self._database.read_quickly("get_partial_rooms", _select_rooms)

    async def get_gathered(self, room_nid: int) -> bytes | None:
        """The root of what has been gathered of the state before the join."""
        return await self._database.read_quickly("get_gathered_state", select_gathered, room_nid)

    async def get_servers(self, room_nid: int) -> list[str]:
        """The servers that were in the room when we came, as we were told."""
        return await self._database.read_quickly("get_partial_servers", _select_servers, room_nid)

    async def get_events(self, room_nid: int, after: int, limit: int) -> list[PartialEvent]:
        """Events that were placed upon a part of the state, in the order in which they were."""
        return await self._database.read(
            "get_partial_events", _select_events, room_nid, after, limit
        )

    async def take_lease(self, room_nid: int, until_ms: int) -> None:
        """Note that this node is at work on the room until then."""
        await self._database.write("take_partial_room", _set_lease, room_nid, until_ms)

    async def is_free(self, room_nid: int, now_ms: int) -> bool:
        """Whether no node is at work on the room, as far as is noted."""
        return await self._database.read_quickly("is_partial_room_free", _is_free, room_nid, now_ms)

    async def has_events(self, room_nid: int) -> bool:
        """Whether the room has events that were placed upon a part of its state."""
        return bool(await self.get_events(room_nid, 0, 1))

    async def get_incomplete(self) -> list[int]:
        """The rooms that lack a part of their state, without those that all of ours have left and
        that nobody asks for."""
        return await self._database.read("get_incomplete_rooms", _select_incomplete)

    async def count_incomplete(self) -> int:
        """How many rooms lack a part of their state."""
        return await self._database.read("count_partial_rooms", _count_incomplete)


def begin_partial(
    txn: WriteTransaction,
    room_nid: int,
    join_nid: int,
    position: int,
    resident: str,
    servers: Iterable[str],
) -> PartialRoom:
    """Note that the room is entered with a part of its state; what there was of an earlier time is
    forgotten before."""
    txn.execute(
        "INSERT INTO partial_rooms (room_nid, join_nid, position, resident) VALUES (?, ?, ?, ?)",
        (room_nid, join_nid, position, resident),
    )
    txn.execute_many(
        "INSERT INTO partial_servers (room_nid, server) VALUES (?, ?)",
        [(room_nid, server) for server in dict.fromkeys(servers)],
    )
    return PartialRoom(room_nid, join_nid, position, resident, None)


def forget_partial(txn: WriteTransaction, room_nid: int) -> None:
    """Forget that the room was entered so: it has been left, or is entered anew.

    Events that were placed meanwhile stay noted, as the past: what is known of the state at them is
    still a part.
    """
    for table in ("partial_rooms", "partial_servers"):
        txn.execute(f"DELETE FROM {table} WHERE room_nid = ?", (room_nid,))
    txn.execute("UPDATE partial_events SET is_past = 1 WHERE room_nid = ?", (room_nid,))


def abandon_partial(txn: WriteTransaction, room_nid: int, position: int) -> None:
    """Note that nobody waits for more: all of ours have left the room, or nobody tells it. The
    servers in it stay known, since they have to hear of what is said."""
    txn.execute(
        "UPDATE partial_rooms SET completed = ?, gathered = NULL WHERE room_nid = ?",
        (position, room_nid),
    )


def end_partial(txn: WriteTransaction, room_nid: int, position: int) -> None:
    """Note that all of the state is known from a position on."""
    txn.execute(
        "UPDATE partial_rooms SET completed = ?, gathered = NULL WHERE room_nid = ?",
        (position, room_nid),
    )
    for table in ("partial_servers", "partial_events"):
        txn.execute(f"DELETE FROM {table} WHERE room_nid = ?", (room_nid,))


def note_completed(
    txn: WriteTransaction, room_nid: int, event_nid: int, position: int
) -> PartialRoom:
    """Note that the state of a room is known better from a position on; `event_nid` is any event of
    it."""
    txn.execute(
        "INSERT INTO partial_rooms (room_nid, join_nid, position, resident, completed) VALUES (?, ?, ?, '', ?)"
        " ON CONFLICT (room_nid) DO UPDATE SET completed = excluded.completed",
        (room_nid, event_nid, position, position),
    )
    return PartialRoom(room_nid, event_nid, position, "", position)


def add_partial_events(
    txn: WriteTransaction, room_nid: int, events: Sequence[tuple[int, bool]], *, past: bool = False
) -> None:
    """Note events (number, whether its state is assumed) that are placed upon a part of the
    state."""
    first = txn.allocate("partial_event", len(events))
    txn.execute_many(
        "INSERT INTO partial_events (room_nid, place, event_nid, is_past, has_gap) VALUES (?, ?, ?, ?, ?)",
        [
            (room_nid, first + index, event_nid, int(past), int(has_gap))
            for index, (event_nid, has_gap) in enumerate(events)
        ],
    )


class FoundRow(msgspec.Struct, frozen=True):
    """What an event is with all of the state: the columns of `events` that depend on it."""

    flags: int
    state_root: bytes | None
    replaces: int | None
    current_root: bytes | None


def set_found(txn: WriteTransaction, room_nid: int, found: Mapping[int, FoundRow]) -> None:
    """Keep what events are with all of the state, by their place."""
    txn.execute_many(
        "UPDATE partial_events SET flags = ?, state_root = ?, replaces = ?, current_root = ?"
        " WHERE room_nid = ? AND place = ?",
        [
            (row.flags, row.state_root, row.replaces, row.current_root, room_nid, place)
            for place, row in found.items()
        ],
    )


def set_gathered(txn: WriteTransaction, room_nid: int, root: bytes | None) -> None:
    """Keep the root of what has been gathered."""
    txn.execute("UPDATE partial_rooms SET gathered = ? WHERE room_nid = ?", (root, room_nid))


def select_gathered(txn: Transaction, room_nid: int) -> bytes | None:
    """The form of `get_gathered` for use inside a transaction."""
    row = txn.query_one("SELECT gathered FROM partial_rooms WHERE room_nid = ?", (room_nid,))
    return None if row is None or row[0] is None else bytes(row[0])


def select_partial_roots(txn: Transaction, room_nid: int) -> set[bytes]:
    """The roots of states that these tables refer to."""
    rows = txn.query(
        "SELECT gathered FROM partial_rooms WHERE room_nid = ? AND gathered IS NOT NULL"
        " UNION SELECT state_root FROM partial_events WHERE room_nid = ? AND state_root IS NOT NULL"
        " UNION SELECT current_root FROM partial_events WHERE room_nid = ? AND current_root IS NOT NULL",
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
        "SELECT place, event_nid, is_past, has_gap FROM partial_events WHERE room_nid = ? AND place > ?"
        " ORDER BY place LIMIT ?",
        (room_nid, after, limit),
    )
    return [
        PartialEvent(place, nid, bool(is_past), bool(has_gap))
        for place, nid, is_past, has_gap in rows
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
        " WHERE r.partial_join IS NOT NULL AND (p.completed IS NULL OR EXISTS (SELECT 1 FROM memberships AS m"
        " WHERE m.room_nid = p.room_nid AND m.membership = 'join' AND m.is_local = 1)) ORDER BY p.room_nid"
    )
    return [room_nid for (room_nid,) in rows]


def _count_incomplete(txn: Transaction) -> int:
    row = txn.query_one("SELECT count(*) FROM partial_rooms WHERE completed IS NULL")
    assert row is not None
    count: int = row[0]
    return count
