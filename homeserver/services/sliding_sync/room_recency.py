"""When rooms last saw an event, from memory: what lists are sorted by, and what tells news without
a query.

Whatever the stream tells of a room is its newest; so a value is read once, if ever. For the reactor
thread.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import filterfalse
from typing import Final

from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventNews, EventRow
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
"""Types of events that move a room up in the eyes of people."""


class RoomRecency:
    """Newest positions by room."""

    def __init__(self, store: RoomRecencyStore, streams: Streams, *, capacity: int) -> None:
        """`capacity`: of how many rooms they are kept."""
        self._store = store
        self._streams = streams
        self._capacity = capacity
        self._latest: dict[int, int] = {}
        self._bumps: dict[int, int] = {}
        self.generation = 0
        """Another one once something of the latest positions was forgotten."""
        streams.subscribe(self._on_changes, Topic.EVENT)
        streams.watch(self._on_remote_write)

    @property
    def known(self) -> Mapping[int, int]:
        """What is known of the latest positions. The mapping is the cache's own: read, don't
        keep."""
        return self._latest

    @property
    def known_bumps(self) -> Mapping[int, int]:
        """As `known`, of the events that move rooms up."""
        return self._bumps

    async def latest(self, room_nids: Collection[int]) -> Mapping[int, int]:
        """The position of the newest event, for these rooms at least. The mapping is the cache's
        own: read, don't keep."""
        while missing := list(filterfalse(self._latest.__contains__, room_nids)):
            if len(self._latest) > self._capacity:
                self._latest, missing = {}, list(room_nids)
                self.generation += 1
            known = self._latest
            read = await self._store.get_latest_positions(missing)
            if known is self._latest:  # else others wrote meanwhile
                _merge(known, missing, read)
        return self._latest

    async def bumps(self, room_nids: Collection[int]) -> Mapping[int, int]:
        """The position of the newest event that moves a room up; 0 where none is near. As for
        `latest`."""
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
            if isinstance(row, EventRow | EventNews):
                if row.position is not None:
                    self._latest[row.room_nid] = row.position
                    if row.type in BUMPING:
                        self._bumps[row.room_nid] = row.position
            elif change.topic is Topic.EVENT:
                self._forget_all()

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Another node wrote: where it has not said what, in which rooms is not known here."""
        told = self._streams.told(after, upto)
        if told is None:
            self._forget_all()
        else:
            self._on_changes(told)

    def _forget_all(self) -> None:
        # whoever holds the mappings goes on with what they knew
        self._latest, self._bumps = {}, {}
        self.generation += 1


def _merge(known: dict[int, int], room_nids: Sequence[int], read: Mapping[int, int]) -> None:
    for nid in room_nids:  # the stream may have told of something newer than what was read
        known[nid] = max(read.get(nid, 0), known.get(nid, 0))
