"""Numbers the (type, state_key) pairs of each room densely. A state tree maps these numbers to
events.

Laws:
- Numbers are assigned in order from 0 and never released, so the committed ones are always 0 … n-1
  without a gap. Suppose the first n pairs are cached, and the highest number in a tree is below n.
  Then a pair that is not cached is certainly absent from the tree, and no query is needed to know
  that.
- Pairs that a write has numbered are shared with other transactions only after its commit. After a
  rollback the same number may be assigned to another pair.
- All nodes together run only one write transaction at a time (`storage/engine/writer.py`). So no
  other write changes the numbering of a room meanwhile, and each write reads it at most once.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Protocol

from storage.engine.immutable_cache import ImmutableCache
from storage.engine.transaction import Transaction, WriteTransaction

StateKey = tuple[str, str]
"""(type, state_key) of a state event."""

_SELECT_FROM = (
    "SELECT type, state_key FROM state_keys WHERE room_nid = ? AND key_nid >= ? ORDER BY key_nid"
)
_INSERT = "INSERT INTO state_keys (room_nid, key_nid, type, state_key) VALUES (?, ?, ?, ?)"


class Numbering(Protocol):
    """The first `count` pairs of a room with their numbers."""

    @property
    def count(self) -> int: ...

    def number_of(self, pair: StateKey) -> int | None: ...

    def pair_of(self, number: int) -> StateKey: ...

    def numbers_of_type(self, event_type: str) -> Sequence[int]:
        """Return the numbers of pairs of that type, ascending."""
        ...

    def types(self) -> Collection[str]:
        """Return the types of all pairs."""
        ...


class RoomStateKeys:
    """A numbering that grows at its end. Reads need no lock; `extend` needs one."""

    __slots__ = ("_by_type", "_numbers", "_pairs")

    def __init__(self) -> None:
        self._numbers: dict[StateKey, int] = {}
        self._pairs: list[StateKey] = []
        self._by_type: dict[str, list[int]] = {}

    @property
    def count(self) -> int:
        return len(self._pairs)

    def number_of(self, pair: StateKey) -> int | None:
        return self._numbers.get(pair)

    def numbers_of(self, pairs: Iterable[StateKey]) -> list[int | None]:
        """Return numbers in the given order; None for pairs without one."""
        return list(map(self._numbers.get, pairs))

    def pair_of(self, number: int) -> StateKey:
        return self._pairs[number]

    def numbers_of_type(self, event_type: str) -> Sequence[int]:
        return self._by_type.get(event_type, ())

    def types(self) -> Collection[str]:
        return tuple(self._by_type)

    def extend(self, start: int, pairs: Sequence[StateKey]) -> int:
        """Add the pairs numbered from `start` on. Return how many were new. Pairs beyond a gap are
        ignored."""
        known = len(self._pairs)
        if start > known:
            return 0
        added = 0
        for number, (event_type, state_key) in enumerate(pairs[known - start :], known):
            of_type = self._by_type.get(event_type)
            if of_type is None:
                self._by_type[event_type] = of_type = []
            # all pairs of a type share one string
            pair = (self._pairs[of_type[0]][0] if of_type else event_type, state_key)
            # a reader reads the count first: below it, it must find everything
            self._numbers[pair] = number
            of_type.append(number)
            self._pairs.append(pair)
            added += 1
        return added


class PendingKeys:
    """The numbering of a room inside a write, with uncommitted pairs at its end."""

    __slots__ = ("_before", "_shared", "_tail")

    def __init__(self, *, shared: Numbering, before: int, pairs: Sequence[StateKey]) -> None:
        self._shared = shared
        self._before = before
        self._tail = RoomStateKeys()
        self._tail.extend(0, pairs)

    @property
    def tail(self) -> tuple[int, Sequence[StateKey]]:
        """The number of the first pair that is not shared yet, and all these pairs."""
        return self._before, list(map(self._tail.pair_of, range(self._tail.count)))

    def add(self, pairs: Sequence[StateKey]) -> int:
        """Number further pairs. Return the number of the first."""
        first = self.count
        self._tail.extend(self._tail.count, pairs)
        return first

    @property
    def count(self) -> int:
        return self._before + self._tail.count

    def number_of(self, pair: StateKey) -> int | None:
        number = self._tail.number_of(pair)
        if number is not None:
            return self._before + number
        number = self._shared.number_of(pair)
        # the shared numbering may have grown since
        return number if number is not None and number < self._before else None

    def pair_of(self, number: int) -> StateKey:
        return (
            self._shared.pair_of(number)
            if number < self._before
            else self._tail.pair_of(number - self._before)
        )

    def numbers_of_type(self, event_type: str) -> Sequence[int]:
        shared = [
            number for number in self._shared.numbers_of_type(event_type) if number < self._before
        ]
        return shared + [self._before + number for number in self._tail.numbers_of_type(event_type)]

    def types(self) -> Collection[str]:
        return {*self._shared.types(), *self._tail.types()}


class StateKeys:
    """The numberings of all rooms. Caches complete rooms, up to `max_pairs` pairs (about 250 bytes
    each)."""

    def __init__(self, max_pairs: int) -> None:
        self._rooms: ImmutableCache[int, RoomStateKeys] = ImmutableCache(
            max_weight=max_pairs, weigh=lambda room: room.count + 1
        )
        self._lock = Lock()

    def get_cached(self, room_nid: int) -> RoomStateKeys | None:
        """Return the cached numbering of a room, or None."""
        return self._rooms.get(room_nid)

    def get(self, txn: Transaction, room_nid: int, min_count: int) -> Numbering:
        """Return a numbering of a room with at least `min_count` pairs, if there are so many. One
        query, or none."""
        known = self._rooms.get(room_nid)
        count = known.count if known is not None else 0
        if known is not None and count >= min_count:
            return known
        if isinstance(txn, WriteTransaction):
            return self._in_write(txn, room_nid)
        return self._share(room_nid, count, self._read_from(txn, room_nid, count))

    def intern(
        self, txn: WriteTransaction, room_nid: int, pairs: Iterable[StateKey]
    ) -> Mapping[StateKey, int]:
        """Return the numbers of the pairs; assign numbers to new pairs. At most one query per room
        and write, if not all are cached."""
        unique = list(dict.fromkeys(pairs))
        known: Numbering = self._rooms.get(room_nid) or RoomStateKeys()
        if any(known.number_of(pair) is None for pair in unique):
            known = pending = self._in_write(txn, room_nid)
            missing = [pair for pair in unique if pending.number_of(pair) is None]
            if missing:
                first = pending.add(missing)
                txn.execute_many(
                    _INSERT,
                    [(room_nid, number, *pair) for number, pair in enumerate(missing, first)],
                )
        return {pair: number for pair in unique if (number := known.number_of(pair)) is not None}

    def _in_write(self, txn: WriteTransaction, room_nid: int) -> PendingKeys:
        """Return all numbered pairs of the room. One query at first, then none."""
        pending: PendingKeys | None = txn.known.get((self, room_nid))
        if pending is None:
            shared = self._rooms.get(room_nid) or RoomStateKeys()
            count = shared.count
            pending = PendingKeys(
                shared=shared, before=count, pairs=self._read_from(txn, room_nid, count)
            )
            txn.known[self, room_nid] = pending
            txn.after_commit(partial(self._share_committed, room_nid, pending))
        return pending

    def _share_committed(self, room_nid: int, pending: PendingKeys) -> None:
        self._share(room_nid, *pending.tail)

    def _share(self, room_nid: int, start: int, pairs: Sequence[StateKey]) -> RoomStateKeys:
        with self._lock:
            room = self._rooms.get(room_nid)
            if room is None:
                room = self._rooms.put_if_absent(room_nid, RoomStateKeys())
            self._rooms.record_growth(room.extend(start, pairs))
            return room

    @staticmethod
    def _read_from(txn: Transaction, room_nid: int, number: int) -> list[StateKey]:
        return [
            (event_type, state_key)
            for event_type, state_key in txn.query(_SELECT_FROM, (room_nid, number))
        ]
