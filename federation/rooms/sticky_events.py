"""The events that are sticky now, from memory: read once, then kept up by the stream. For the
reactor thread.

Most rooms have none, and those that have some have few: one for each device in a call. Of a room
the newest `MOST_OF_ROOM` are told; no honest room has as many.

Proposal: MSC4354.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final

from storage.engine.streams import Change, Streams, Topic
from storage.rooms.sticky_events import StickyEventStore, StickyRow

MOST_OF_ROOM: Final = 1000


class StickyEvents:
    """Knows which events are sticky, and until when."""

    def __init__(
        self, store: StickyEventStore, streams: Streams, now_ms: Callable[[], int]
    ) -> None:
        self._store = store
        self._now_ms = now_ms
        self._rooms: dict[int, dict[int, StickyRow]] = {}
        """By room and number of the event, in the order of their positions."""
        self._by_nid: dict[int, StickyRow] = {}
        self._is_loaded = False
        self._losses_heard = 0
        streams.subscribe(self._hear, Topic.STICKY, Topic.REDACTED)
        streams.watch(self._heed_others)

    async def in_rooms(self, ranges: Mapping[int, tuple[int, int]]) -> dict[int, list[StickyRow]]:
        """For each room (after, up to): its sticky events with positions in between, in order; only
        rooms that have any."""
        await self._load()
        found: dict[int, list[StickyRow]] = {}
        for room_nid in self._rooms.keys() & ranges.keys():
            after, upto = ranges[room_nid]
            rows = [row for row in self._unexpired(room_nid) if after < row.position <= upto]
            if rows:
                found[room_nid] = rows
        return found

    async def rooms(self) -> Set[int]:
        """The rooms that may have sticky events."""
        await self._load()
        return self._rooms.keys()

    def may_be_in(self, room_nid: int) -> bool:
        """Whether the room may have sticky events, as far as is at hand."""
        return not self._is_loaded or room_nid in self._rooms

    def end_of(self, event_nid: int) -> int | None:
        """When an event ceases to be sticky; None if it is not, or if that is not at hand."""
        row = self._by_nid.get(event_nid)
        return None if row is None else row.expires_ts

    async def do_forget(self, limit: int) -> int:
        """Forget up to `limit` events that are sticky no longer; how many."""
        for room_nid in list(self._rooms):
            self._unexpired(room_nid)
        return await self._store.remove_expired(self._now_ms(), limit)

    async def _load(self) -> None:
        while not self._is_loaded:
            heard = self._losses_heard
            rows = await self._store.get_unexpired(self._now_ms())
            if heard == self._losses_heard:
                self._is_loaded = True
                for row in sorted({*rows, *self._by_nid.values()}, key=lambda row: row.position):
                    self._forget(row.event_nid)
                    self._add(row)

    def _unexpired(self, room_nid: int) -> Sequence[StickyRow]:
        rows, now = self._rooms.get(room_nid, {}), self._now_ms()
        for row in [row for row in rows.values() if row.expires_ts <= now]:
            self._forget(row.event_nid)
        return list(rows.values())

    def _add(self, row: StickyRow) -> None:
        rows = self._rooms.setdefault(row.room_nid, {})
        rows[row.event_nid] = self._by_nid[row.event_nid] = row
        if len(rows) > MOST_OF_ROOM:
            self._forget(next(iter(rows)))

    def _forget(self, event_nid: int) -> None:
        row = self._by_nid.pop(event_nid, None)
        if row is not None:
            rows = self._rooms[row.room_nid]
            del rows[event_nid]
            if not rows:
                del self._rooms[row.room_nid]

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if (
                change.topic is Topic.STICKY
                and isinstance(change.detail, StickyRow)
                and not change.detail.waits
            ):
                self._add(change.detail)
            elif change.topic is Topic.REDACTED and isinstance(change.detail, int):
                self._losses_heard += 1
                self._forget(change.detail)

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another node wrote: what became sticky, or was redacted, is not known here."""
        self._losses_heard += 1
        self._is_loaded = False
        self._rooms.clear()
        self._by_nid.clear()
