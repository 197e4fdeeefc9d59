"""Receipts of rooms that have few, from memory: who comes into a room's view is told all of them,
and of most rooms there are as many as people in it.

Laws:
- What is kept of a room are all its receipts, as the stream has told them: it was read when all
  that it had told was in it, and nothing came while it was read.
- Of rooms with many nothing is kept but that they are such. (Receipts go without a word only where
  one user has hundreds in one room: `storage.rooms.receipts.MOST_THREADS`, more than `FEW`.)

For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from storage.engine.streams import Change, Streams, Topic
from storage.rooms.receipts import ReceiptRow, ReceiptStore

FEW: Final = 200
"""Receipts of a room that is kept, at most."""

_Key = tuple[str, str, str]


class KeptReceipts:
    """Reads receipts, through a cache."""

    def __init__(self, store: ReceiptStore, streams: Streams, *, capacity: int) -> None:
        """`capacity`: how many receipts and rooms are kept."""
        self._store = store
        self._streams = streams
        self._capacity = capacity
        self._rooms: OrderedDict[int, dict[_Key, ReceiptRow] | None] = OrderedDict()
        """By room, the oldest receipts first; None where they are many."""
        self._weight = 0
        self.hits = 0
        self.misses = 0
        self._changes_heard = 0
        streams.subscribe(self._hear, Topic.RECEIPT)
        streams.watch(self._heed_others)

    def __len__(self) -> int:
        """Receipts and rooms in the cache."""
        return self._weight

    async def of_rooms(
        self, room_nids: Collection[int]
    ) -> dict[int, Collection[ReceiptRow] | None]:
        """All receipts of each room, the oldest first; None where they are many."""
        found: dict[int, Collection[ReceiptRow] | None] = {}
        missing: list[int] = []
        for room_nid in room_nids:
            if room_nid in self._rooms:
                self._rooms.move_to_end(room_nid)
                kept = self._rooms[room_nid]
                found[room_nid] = None if kept is None else tuple(kept.values())
            else:
                missing.append(room_nid)
        self._count(found, missing)
        if missing:
            heard = self._changes_heard
            for room_nid, rows in (
                await self._store.get_receipts_of_rooms(missing, FEW + 1)
            ).items():
                found[room_nid] = rows if len(rows) <= FEW else None
                if (
                    heard == self._changes_heard and room_nid not in self._rooms
                ):  # others may have read it meanwhile
                    self._keep(room_nid, rows)
        return found

    async def get_receipts(
        self, ranges: Mapping[int, tuple[int, int]]
    ) -> Mapping[int, list[ReceiptRow]]:
        """For each room (after, up to): the receipts that changed in between, the oldest first."""
        found: dict[int, list[ReceiptRow]] = {}
        missing: dict[int, tuple[int, int]] = {}
        for room_nid, (after, upto) in ranges.items():
            kept = self._rooms.get(room_nid)
            if kept is None:
                missing[room_nid] = (after, upto)
            else:
                self._rooms.move_to_end(room_nid)
                found[room_nid] = [row for row in kept.values() if after < row.position <= upto]
        self._count(found, missing)
        if missing:
            heard, head = self._changes_heard, self._streams.current()
            read = await self._store.get_receipts(missing)
            found |= read
            if heard == self._changes_heard:
                for room_nid, rows in read.items():
                    after, upto = missing[room_nid]
                    if after == 0 and upto >= head and room_nid not in self._rooms:
                        self._keep(room_nid, rows)
        return found

    def _count(self, found: Collection[int], missing: Collection[int]) -> None:
        self.hits += len(found)
        self.misses += len(missing)

    def _keep(self, room_nid: int, rows: Sequence[ReceiptRow]) -> None:
        self._rooms[room_nid] = {_key(row): row for row in rows} if len(rows) <= FEW else None
        self._weight += _weigh(self._rooms[room_nid])
        self._make_room()

    def _make_room(self) -> None:
        while self._weight > self._capacity and len(self._rooms) > 1:
            self._weight -= _weigh(self._rooms.popitem(last=False)[1])

    def _hear(self, changes: Iterable[Change]) -> None:
        for change in changes:
            row = change.detail
            if change.topic is not Topic.RECEIPT:
                continue
            if not isinstance(row, ReceiptRow):
                self._heed_others(change.position, change.position)
                continue
            self._changes_heard += 1
            kept = self._rooms.get(row.room_nid)
            if kept is not None:
                self._weight -= _weigh(kept)
                kept.pop(_key(row), None)
                kept[_key(row)] = row
                if len(kept) > FEW:
                    kept = self._rooms[row.room_nid] = None
                self._weight += _weigh(kept)
                self._make_room()

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another node wrote: in which rooms is not known here."""
        self._changes_heard += 1
        self._rooms.clear()
        self._weight = 0


def _key(row: ReceiptRow) -> _Key:
    return row.user_id, row.receipt_type, row.thread_id


def _weigh(kept: Mapping[_Key, ReceiptRow] | None) -> int:
    return 1 if kept is None else 1 + len(kept)
