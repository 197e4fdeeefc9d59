"""A cache of the newest events of the most recently used rooms.

Each of these rooms has a *tail*: a list of all events that arrived in the room after some position.
The stream appends to it each new event that this node writes. A write of another node empties the
cache, because the tails lack the events of that write. When a message wakes many clients and the
room has a tail, their syncs find the message without a query. The cache is used only on the reactor
thread.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Protocol

import msgspec

from storage.cache import LRU
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventRow
from storage.events.timelines import Arrival, TimelineStore

TAIL_LENGTH = 64
"""Cached arrivals per room."""

_position = attrgetter("position")


class Positioned(Protocol):
    """An object with a position in the stream."""

    @property
    def position(self) -> int:
        """The position."""
        ...


def count_upto(known: Sequence[Positioned], position: int) -> int:
    """Count the items, oldest first, up to a position.

    It searches from the end, because mostly only the last item is newer. Then that is faster than a
    binary search.
    """
    count = len(known)
    while count and known[count - 1].position > position:
        count -= 1
    return count


class _Tail(msgspec.Struct):
    complete_from: int
    """Every arrival after this position is in the list."""
    arrivals: list[Arrival]
    """Oldest first."""


class ArrivalRange(msgspec.Struct, frozen=True, gc=False):
    """The arrivals in a room between two positions."""

    arrivals: Sequence[Arrival]
    """The newest ones, oldest first."""
    limited: bool
    """There are older ones in the range."""


class Timelines:
    """Reads the arrivals in rooms, from cached tails or from storage.

    The cache is no `StreamCache`. A new event extends a tail, which records the position from which
    it is complete.
    """

    def __init__(self, *, store: TimelineStore, streams: Streams, capacity: int) -> None:
        """`capacity`: rooms."""
        self._store = store
        self._streams = streams
        self._tails: LRU[int, _Tail] = LRU(max_entries=capacity)
        self.hits = 0
        self.misses = 0
        streams.subscribe(self._on_changes, Topic.EVENT, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    def __len__(self) -> int:
        """Rooms in the cache."""
        return len(self._tails)

    async def get_latest(
        self, ranges: Mapping[int, tuple[int, int]], limit: int
    ) -> dict[int, ArrivalRange]:
        """Return the newest `limit` arrivals of each room with after < position ≤ up to."""
        found: dict[int, ArrivalRange] = {}
        missing: dict[int, tuple[int, int]] = {}
        for room_nid, (after, upto) in ranges.items():
            latest = self.find_latest(room_nid, after, upto, limit)
            if latest is None:
                missing[room_nid] = (after, upto)
            else:
                found[room_nid] = latest
        self.hits += len(found)
        self.misses += len(missing)
        if missing:
            head = self._streams.current()
            rows = await self._store.get_latest(missing, max(limit, TAIL_LENGTH) + 1)
            for room_nid, newest_first in rows.items():
                after, upto = missing[room_nid]
                arrivals = newest_first[::-1]
                found[room_nid] = ArrivalRange(
                    arrivals[-limit:] if limit else [], len(arrivals) > limit
                )
                if upto >= head and head == self._streams.current():
                    # the stream will announce what is committed above the head
                    self._keep(
                        room_nid,
                        after,
                        [arrival for arrival in arrivals if arrival.position <= head],
                    )
        return found

    def find_all(self, room_nid: int, after: int, upto: int) -> Sequence[Arrival] | None:
        """Return the arrivals with after < position ≤ up to, oldest first, if all are cached."""
        tail = self._tails.get(room_nid)
        if tail is None or after < tail.complete_from:
            return None
        self.hits += 1
        known = tail.arrivals
        arrivals = known[count_upto(known, after) :]
        if not arrivals or arrivals[-1].position <= upto:  # usually there is nothing newer
            return arrivals
        return arrivals[: count_upto(arrivals, upto)]

    async def get_newest(self, positions: Mapping[int, int]) -> dict[int, Arrival]:
        """Return the newest arrival of each room with position ≤ up to, if there is one."""
        found: dict[int, Arrival] = {}
        missing: dict[int, tuple[int, int]] = {}
        for room_nid, upto in positions.items():
            tail = self._tails.peek(room_nid)
            before = bisect_right(tail.arrivals, upto, key=_position) if tail is not None else 0
            if tail is not None and before:
                found[room_nid] = tail.arrivals[before - 1]
            else:
                missing[room_nid] = (0, upto)
        if missing:
            rows = await self._store.get_latest(missing, 1)
            found.update((room_nid, arrivals[0]) for room_nid, arrivals in rows.items() if arrivals)
        return found

    def find_latest(self, room_nid: int, after: int, upto: int, limit: int) -> ArrivalRange | None:
        """Return the newest `limit` arrivals with after < position ≤ up to, if they are cached."""
        tail = self._tails.get(room_nid)
        if tail is None:
            return None
        known = tail.arrivals
        start = bisect_right(known, after, key=_position)
        arrivals = known[start : bisect_right(known, upto, start, key=_position)]
        if after < tail.complete_from and len(arrivals) <= limit:
            return None  # there may be others that are not cached
        return ArrivalRange(arrivals[-limit:] if limit else [], len(arrivals) > limit)

    def _keep(self, room_nid: int, after: int, arrivals: list[Arrival]) -> None:
        complete_from = after
        if len(arrivals) > TAIL_LENGTH:
            complete_from = arrivals[-TAIL_LENGTH - 1].position
            arrivals = arrivals[-TAIL_LENGTH:]
        known = self._tails.peek(room_nid)
        if known is None or known.complete_from > complete_from:
            known = _Tail(complete_from, arrivals)
        self._tails.put(room_nid, known)

    def _on_remote_write(self, _after: int, _upto: int) -> None:
        """Another node wrote: the tails may lack events."""
        self._tails.clear()

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if change.topic is not Topic.EVENT:
                continue
            if not isinstance(row, EventRow):
                self._tails.clear()  # of an unknown room
                continue
            tail = self._tails.peek(row.room_nid)
            if tail is None:
                # a reader that was up to date before this event needs no more than it
                self._keep(
                    row.room_nid, change.position - 1, [Arrival(change.position, row.event_nid)]
                )
                continue
            tail.arrivals.append(Arrival(change.position, row.event_nid))
            if len(tail.arrivals) > TAIL_LENGTH:
                tail.complete_from = tail.arrivals.pop(0).position
