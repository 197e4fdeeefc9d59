"""The stored rooms and their heads.

The number (`room_nid`), ID and room version of a room never change after its first event is stored,
so they are cached without invalidation. Before that, the room version is only a claim of a server
that invited one of our users, and the room is not cached.

The head (extremities, depth, root of the current state) changes with every event. The head has a
version number of its own, which increases with each change. A write replaces the head only if the
stored number is still the one that the writer has read.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import structs

from storage.engine.database import Database
from storage.engine.immutable_cache import ImmutableCache
from storage.engine.transaction import Transaction, WriteTransaction


class RoomRow(msgspec.Struct, frozen=True, gc=False):
    """The data of a room. It does not change once an event of the room is stored."""

    room_nid: int
    room_id: str
    version: str
    creation_ts: int


class RoomHead(msgspec.Struct, frozen=True, gc=False):
    """The head of a room: forward extremities, depth, root of the current state, and a version
    number."""

    version: int
    """Rises with every change."""
    extremities: tuple[tuple[int, str], ...]
    """(event_nid, event_id) of the accepted events without successors."""
    depth: int
    """The greatest depth of an accepted event."""
    state_root: bytes | None
    joined_count: int
    invited_count: int
    partial_join: int | None = None
    """The join whose state is still partial; None: the state is complete."""


_ROOM_COLUMNS = "room_nid, room_id, version, creation_ts"
_HEAD_COLUMNS = (
    "head_version, extremities, depth, state_root, joined_count, invited_count, partial_join"
)
_EMPTY_HEAD = RoomHead(
    version=0, extremities=(), depth=0, state_root=None, joined_count=0, invited_count=0
)


class RoomStore:
    """Reads and writes the table `rooms`."""

    def __init__(self, *, database: Database, capacity: int = 50_000) -> None:
        """`capacity`: the number of cached rooms; each takes about 400 bytes."""
        self._database = database
        self._by_id: ImmutableCache[str, RoomRow] = ImmutableCache(
            max_weight=capacity, weigh=_weigh
        )
        self._by_nid: ImmutableCache[int, RoomRow] = ImmutableCache(
            max_weight=capacity, weigh=_weigh
        )

    async def get_rooms(self, room_ids: Iterable[str]) -> Mapping[str, RoomRow]:
        """Return rooms by ID; unknown IDs are missing from the answer."""
        found: dict[str, RoomRow] = {}
        missing: list[str] = []
        for room_id in room_ids:
            row = self._by_id.get(room_id)
            if row is None:
                missing.append(room_id)
            else:
                found[room_id] = row
        if missing:
            rows = await self._database.read_quickly("get_rooms", _select_rooms, missing)
            found.update((row.room_id, row) for row in self._cache(rows))
        return found

    async def get_room(self, room_id: str) -> RoomRow | None:
        """Return one room, or None."""
        row = self._by_id.get(room_id)
        return row if row is not None else (await self.get_rooms([room_id])).get(room_id)

    async def get_rooms_by_nid(self, room_nids: Iterable[int]) -> Mapping[int, RoomRow]:
        """Return rooms by number; all of them must exist."""
        found: dict[int, RoomRow] = {}
        missing: list[int] = []
        for room_nid in room_nids:
            row = self._by_nid.get(room_nid)
            if row is None:
                missing.append(room_nid)
            else:
                found[room_nid] = row
        if missing:
            rows = await self._database.read_quickly(
                "get_rooms_by_nid", _select_rooms_by_nid, missing
            )
            found.update((row.room_nid, row) for row in self._cache(rows))
        return found

    async def get_head(self, room_nid: int) -> RoomHead:
        """Return the stored head of a room."""
        return await self._database.read_quickly("get_room_head", select_head, room_nid)

    async def get_public_flags(self, room_nids: Iterable[int]) -> Mapping[int, bool]:
        """Tell for each room whether this server's public directory lists it."""
        return await self._database.read("get_public_flags", _select_public, list(room_nids))

    async def set_public(self, room_nid: int, is_public: bool) -> None:
        """List the room in this server's public directory, or remove it."""
        await self._database.write("set_room_public", set_public, room_nid, is_public)

    def _cache(self, rows: Sequence[tuple[RoomRow, bool]]) -> list[RoomRow]:
        started = [row for row, has_events in rows if has_events]
        self._by_id.put_all((row.room_id, row) for row in started)
        self._by_nid.put_all((row.room_nid, row) for row in started)
        return [row for row, _ in rows]


def _weigh(_: RoomRow) -> int:
    return 1


class RoomExists(Exception):
    """A room with that id exists already."""


def add_room(
    txn: WriteTransaction, room_id: str, version: str, creation_ts: int
) -> tuple[RoomRow, RoomHead]:
    """Add a room with an empty head. Raises RoomExists."""
    room_nid = txn.allocate("room")
    added = txn.execute(
        "INSERT INTO rooms (room_nid, room_id, version, head_version, extremities, depth,"
        " creation_ts)"
        " VALUES (?, ?, ?, 0, '[]', 0, ?) ON CONFLICT DO NOTHING",
        (room_nid, room_id, version, creation_ts),
    )
    if not added:
        raise RoomExists
    txn.execute_later("INSERT INTO room_summaries (room_nid) VALUES (?)", (room_nid,))
    return RoomRow(room_nid, room_id, version, creation_ts), _EMPTY_HEAD


def select_room(txn: Transaction, room_id: str) -> RoomRow | None:
    """Do `RoomStore.get_room` in a transaction."""
    rows = _select_rooms(txn, [room_id])
    return rows[0][0] if rows else None


def get_or_add_room(txn: WriteTransaction, room_id: str, version: str, creation_ts: int) -> RoomRow:
    """Return the room; add it if it is unknown. It takes the given version, unless it has events
    here."""
    known = select_room(txn, room_id)
    if known is None:
        return add_room(txn, room_id, version, creation_ts)[0]
    if known.version != version and txn.execute(
        "UPDATE rooms SET version = ? WHERE room_nid = ? AND head_version = 0",
        (version, known.room_nid),
    ):
        return structs.replace(known, version=version)
    return known


def select_head(txn: Transaction, room_nid: int) -> RoomHead:
    """Do `RoomStore.get_head` in a transaction. Raises LookupError for an
    unknown room."""
    row = txn.query_one(f"SELECT {_HEAD_COLUMNS} FROM rooms WHERE room_nid = ?", (room_nid,))
    if row is None:
        raise LookupError(f"no room with number {room_nid}")
    extremities = tuple((nid, event_id) for nid, event_id in msgspec.json.decode(row[1]))
    return RoomHead(row[0], extremities, *row[2:])


def move_head(txn: WriteTransaction, room_nid: int, expected_version: int, head: RoomHead) -> bool:
    """Replace the head if it still has the expected version. Return whether it had."""
    changed = txn.execute(
        "UPDATE rooms SET head_version = ?, extremities = ?, depth = ?, state_root = ?,"
        " joined_count = ?,"
        " invited_count = ?, partial_join = ? WHERE room_nid = ? AND head_version = ?",
        (
            head.version,
            msgspec.json.encode(head.extremities).decode(),
            head.depth,
            head.state_root,
            head.joined_count,
            head.invited_count,
            head.partial_join,
            room_nid,
            expected_version,
        ),
    )
    return changed == 1


def set_public(txn: WriteTransaction, room_nid: int, is_public: bool) -> None:
    """Do `RoomStore.set_public` in a write."""
    txn.execute("UPDATE rooms SET is_public = ? WHERE room_nid = ?", (int(is_public), room_nid))


def move_directory_listing(txn: WriteTransaction, from_room: int, to_room: int) -> None:
    """List one room in the directory in place of another, if that one is listed."""
    if _select_public(txn, [from_room]).get(from_room):
        set_public(txn, from_room, False)
        set_public(txn, to_room, True)


def _select_rooms(txn: Transaction, room_ids: list[str]) -> list[tuple[RoomRow, bool]]:
    """Return rooms, each with whether it has events here."""
    rows = txn.query_in(
        f"SELECT {_ROOM_COLUMNS}, head_version FROM rooms WHERE room_id IN {{keys}}", room_ids
    )
    return [(RoomRow(*row[:4]), row[4] > 0) for row in rows]


def _select_rooms_by_nid(txn: Transaction, room_nids: list[int]) -> list[tuple[RoomRow, bool]]:
    rows = txn.query_in(
        f"SELECT {_ROOM_COLUMNS}, head_version FROM rooms WHERE room_nid IN {{keys}}", room_nids
    )
    return [(RoomRow(*row[:4]), row[4] > 0) for row in rows]


def _select_public(txn: Transaction, room_nids: list[int]) -> dict[int, bool]:
    rows = txn.query_in("SELECT room_nid, is_public FROM rooms WHERE room_nid IN {keys}", room_nids)
    return {nid: bool(is_public) for nid, is_public in rows}
