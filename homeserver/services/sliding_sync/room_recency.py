"""The positions of the newest events of rooms, in memory: lists are sorted by them.

An event that arrives on the stream is the room's newest. So a value that was read from the database
is updated from the stream, and not read again while it is cached. Use this module only on the
reactor thread.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import filterfalse
from typing import Final

from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventRow, EventSummary
from storage.rooms.recency import RoomRecencyStore

BUMPING: Final = frozenset(
    {
        "m.room.create",
        "m.room.message",
        "m.room.encrypted",
        "m.sticker",
        "m.call.invite",
        "m.poll.start",
        "org.matrix.msc3381.poll.start",
        "m.beacon_info",
        "org.matrix.msc3672.beacon_info",
    }
)
"""Event types that move a room up in a list (`bump_stamp`)."""


class RoomRecency:
    """The newest positions by room.

    No `StreamCache`: a list looks up thousands of rooms, so it gets the mapping itself. Changes
    set positions of rooms that are not cached, too.
    """

    def __init__(self, *, store: RoomRecencyStore, streams: Streams, capacity: int) -> None:
        """`capacity`: the number of rooms that are cached."""
        self._store = store
        self._streams = streams
        self._capacity = capacity
        self._latest: dict[int, int] = {}
        self._bumps: dict[int, int] = {}
        self.generation = 0
        """Changes when any of the latest positions was dropped."""
        streams.subscribe(self._on_changes, Topic.EVENT, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    @property
    def known(self) -> Mapping[int, int]:
        """The latest positions in memory. The mapping belongs to the cache: do not hold it."""
        return self._latest

    @property
    def known_bumps(self) -> Mapping[int, int]:
        """The same for events that move rooms up."""
        return self._bumps

    async def latest(self, room_nids: Collection[int]) -> Mapping[int, int]:
        """Return the positions of the newest events, of at least these rooms.

        The mapping belongs to the cache: do not hold it.
        """
        while missing := list(filterfalse(self._latest.__contains__, room_nids)):
            if len(self._latest) > self._capacity:
                self._latest, missing = {}, list(room_nids)
                self.generation += 1
            known = self._latest
            read = await self._store.get_latest_positions(missing)
            if known is self._latest:  # else the cache was cleared in the meantime
                _merge(known, missing, read)
        return self._latest

    async def bumps(self, room_nids: Collection[int]) -> Mapping[int, int]:
        """Return the same for events that move rooms up; 0 if there is no recent one."""
        while missing := list(filterfalse(self._bumps.__contains__, room_nids)):
            if len(self._bumps) > self._capacity:
                self._bumps, missing = {}, list(room_nids)
            known = self._bumps
            read = await self._store.get_latest_of_types(missing, BUMPING)
            if known is self._bumps:
                _merge(known, missing, read)
        return self._bumps

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, EventRow | EventSummary):
                if row.position is not None:
                    self._latest[row.room_nid] = row.position
                    if row.type in BUMPING:
                        self._bumps[row.room_nid] = row.position
            elif change.topic is Topic.EVENT:
                self._clear()

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Another node wrote: apply its changes if they are known, else clear the cache."""
        changes = self._streams.get_remote_changes(after, upto)
        if changes is None:
            self._clear()
        else:
            self._on_changes(changes)

    def _clear(self) -> None:
        # callers that hold the old mappings keep them
        self._latest, self._bumps = {}, {}
        self.generation += 1


def _merge(known: dict[int, int], room_nids: Sequence[int], read: Mapping[int, int]) -> None:
    for nid in room_nids:  # the stream may have announced a newer event than the one read
        known[nid] = max(read.get(nid, 0), known.get(nid, 0))
