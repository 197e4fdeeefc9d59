"""A cache of receipts by room. It holds all receipts of a room that has few.

A client that sees a room for the first time gets all its receipts. Most rooms have few receipts:
about as many as members. For a room with more than `MAX_CACHED_PER_ROOM` receipts, the cache holds
only the fact that there are many.

The cache follows the stream. Only one kind of change is not on the stream: if a user has receipts
for more than `storage.rooms.receipts.MAX_THREADS` threads of a room, the oldest are deleted. This
does not make the cache wrong: such a room has more receipts than the cache holds for a room.

Use this module only on the reactor thread.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from storage.cache import StreamCache
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.receipts import ReceiptRow, ReceiptStore

MAX_CACHED_PER_ROOM: Final = 200
"""The maximum number of receipts of a room in the cache."""

_Key = tuple[str, str, str]


_Receipts = dict[_Key, ReceiptRow] | None
"""The receipts of a room, the oldest first; None: they are many."""


class ReceiptCache:
    """Reads receipts through a cache."""

    def __init__(self, *, store: ReceiptStore, streams: Streams, capacity: int) -> None:
        """`capacity`: receipts and rooms."""
        self._store = store
        self._streams = streams
        self._rooms: StreamCache[int, _Receipts] = StreamCache(
            streams,
            Topic.RECEIPT,
            load=self._load,
            keys_of=_rooms_of,
            update=_update,
            max_weight=capacity,
            weigh=lambda _, receipts: 1 + len(receipts or ()),
        )
        self._ranges_read = 0

    def __len__(self) -> int:
        """Receipts and rooms in the cache."""
        return self._rooms.weight

    @property
    def hits(self) -> int:
        """Rooms that were cached."""
        return self._rooms.hits

    @property
    def misses(self) -> int:
        """Rooms that had to be read."""
        return self._rooms.misses + self._ranges_read

    async def get_room_receipts(
        self, room_nids: Collection[int]
    ) -> dict[int, Collection[ReceiptRow] | None]:
        """Return all receipts of each room, the oldest first; None if they are many."""
        found = await self._rooms.get_many(room_nids)
        return {nid: None if rows is None else list(rows.values()) for nid, rows in found.items()}

    async def get_receipts(
        self, ranges: Mapping[int, tuple[int, int]]
    ) -> Mapping[int, list[ReceiptRow]]:
        """Return the receipts of each room that changed in its range (after, up to), the oldest
        first."""
        found: dict[int, list[ReceiptRow]] = {}
        missing: dict[int, tuple[int, int]] = {}
        for room_nid, (after, upto) in ranges.items():
            receipts = self._rooms.find(room_nid)
            if receipts is None:
                missing[room_nid] = (after, upto)
            else:
                found[room_nid] = [row for row in receipts.values() if after < row.position <= upto]
        if missing:
            self._ranges_read += len(missing)
            changes, head = self._rooms.changes, self._streams.current()
            read = await self._store.get_receipts(missing)
            found |= read
            for room_nid, rows in read.items():
                after, upto = missing[room_nid]
                if after == 0 and upto >= head and room_nid not in self._rooms:
                    self._rooms.put(room_nid, _by_key(rows), since=changes)
        return found

    async def _load(self, room_nids: Sequence[int]) -> Mapping[int, _Receipts]:
        found = await self._store.get_receipts_of_rooms(room_nids, MAX_CACHED_PER_ROOM + 1)
        return {room_nid: _by_key(rows) for room_nid, rows in found.items()}


def _rooms_of(change: Change) -> Sequence[int] | None:
    row = change.detail
    return (row.room_nid,) if isinstance(row, ReceiptRow) else None


def _update(receipts: _Receipts, change: Change) -> bool:
    row = change.detail
    if not isinstance(row, ReceiptRow):
        return False
    if receipts is not None:
        receipts.pop(_key(row), None)
        receipts[_key(row)] = row
    return receipts is None or len(receipts) <= MAX_CACHED_PER_ROOM


def _by_key(rows: Sequence[ReceiptRow]) -> _Receipts:
    return {_key(row): row for row in rows} if len(rows) <= MAX_CACHED_PER_ROOM else None


def _key(row: ReceiptRow) -> _Key:
    return row.user_id, row.receipt_type, row.thread_id
