"""A cache of the events that are sticky now: everybody in their room receives them until they
expire, even clients whose timeline does not contain them.

Most rooms have no sticky events. The others have few: one for each device in a call. Readers get
the newest `MAX_PER_ROOM` sticky events of a room, which is more than an honest room has. The cache
is used only on the reactor thread.

Proposal: MSC4354
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Final

from storage.cache import StreamValue
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.sticky_events import StickyEventStore, StickyRow

MAX_PER_ROOM: Final = 1000


class _Index:
    """Sticky events by room and by number, in the order of their positions."""

    def __init__(self, rows: Iterable[StickyRow]) -> None:
        self.rooms: dict[int, dict[int, StickyRow]] = {}
        self.by_nid: dict[int, StickyRow] = {}
        for row in sorted(rows, key=lambda row: row.position):
            self.add(row)

    def add(self, row: StickyRow) -> None:
        """Add an event, and remove the oldest of the room if it has too many."""
        self.remove(row.event_nid)
        rows = self.rooms.setdefault(row.room_nid, {})
        rows[row.event_nid] = self.by_nid[row.event_nid] = row
        if len(rows) > MAX_PER_ROOM:
            self.remove(next(iter(rows)))

    def remove(self, event_nid: int) -> None:
        """Remove an event, if it is here."""
        row = self.by_nid.pop(event_nid, None)
        if row is not None:
            rows = self.rooms[row.room_nid]
            del rows[event_nid]
            if not rows:
                del self.rooms[row.room_nid]

    def remove_expired(self, room_nid: int, now: int) -> Sequence[StickyRow]:
        """Remove the expired events of a room; return the others."""
        rows = self.rooms.get(room_nid, {})
        for row in [row for row in rows.values() if row.expires_ts <= now]:
            self.remove(row.event_nid)
        return list(rows.values())

    def update(self, change: Change) -> bool:
        """Apply a change; return False if it lacks the needed data."""
        if change.topic is Topic.REDACTED:
            if not isinstance(change.detail, int):
                return False
            self.remove(change.detail)
            return True
        if not isinstance(change.detail, StickyRow):
            return False
        if not change.detail.is_held:
            self.add(change.detail)
        return True


class StickyEvents:
    """Reads which events are sticky, and until when."""

    def __init__(
        self, *, store: StickyEventStore, streams: Streams, now_ms: Callable[[], int]
    ) -> None:
        self._store = store
        self._now_ms = now_ms
        self._index: StreamValue[_Index] = StreamValue(
            streams, Topic.STICKY, Topic.REDACTED, load=self._load, update=_Index.update
        )

    async def in_rooms(self, ranges: Mapping[int, tuple[int, int]]) -> dict[int, list[StickyRow]]:
        """Return the sticky events of rooms with after < position ≤ up to, in order.

        Rooms without any are left out.
        """
        index, now = await self._index.get(), self._now_ms()
        found: dict[int, list[StickyRow]] = {}
        for room_nid in index.rooms.keys() & ranges.keys():
            after, upto = ranges[room_nid]
            rows = index.remove_expired(room_nid, now)
            rows = [row for row in rows if after < row.position <= upto]
            if rows:
                found[room_nid] = rows
        return found

    async def rooms(self) -> Set[int]:
        """Return the rooms that may have sticky events."""
        return (await self._index.get()).rooms.keys()

    def may_be_in(self, room_nid: int) -> bool:
        """Return whether the room may have sticky events; True if that is not cached."""
        index = self._index.find()
        return index is None or room_nid in index.rooms

    def end_of(self, event_nid: int) -> int | None:
        """Return the time when an event expires; None if it is not sticky or not cached."""
        index = self._index.find()
        row = None if index is None else index.by_nid.get(event_nid)
        return None if row is None else row.expires_ts

    async def do_remove_expired(self, limit: int) -> int:
        """Delete up to `limit` expired events; return how many were deleted."""
        index, now = self._index.find(), self._now_ms()
        if index is not None:
            for room_nid in list(index.rooms):
                index.remove_expired(room_nid, now)
        return await self._store.remove_expired(now, limit)

    async def _load(self) -> _Index:
        return _Index(await self._store.get_unexpired(self._now_ms()))
