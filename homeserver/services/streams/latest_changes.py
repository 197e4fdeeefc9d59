"""Stores the positions at which users or rooms changed last, and finds those that changed since a
position. Typing and presence use it."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class LatestChanges(Generic[K]):
    """Holds the positions of the `capacity` keys that changed last. Use this class only on the
    reactor thread.

    It is not an `LRU`: a read does not move a key, and an eviction raises `complete_from`.
    """

    def __init__(self, *, capacity: int, complete_from: int) -> None:
        self._capacity = capacity
        self._positions: OrderedDict[K, int] = OrderedDict()
        self.complete_from = complete_from
        """All changes above this position are stored."""

    def __contains__(self, key: object) -> bool:
        return key in self._positions

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys, the latest changed last."""
        return iter(self._positions)

    def items(self) -> Iterable[tuple[K, int]]:
        """Return the keys and their positions, the latest changed last."""
        return self._positions.items()

    def get(self, key: K) -> int:
        """Return the position of the latest change of a key; 0 if it is not stored."""
        return self._positions.get(key, 0)

    def since(self, position: int) -> Iterator[K]:
        """Iterate over the keys that changed above a position, the latest first."""
        for key in reversed(self._positions):
            if self._positions[key] <= position:
                return
            yield key

    def record(self, key: K, position: int) -> K | None:
        """Record a change above all others. Return the key that it evicts, if any."""
        self._positions[key] = position
        self._positions.move_to_end(key)
        if len(self._positions) <= self._capacity:
            return None
        evicted, self.complete_from = self._positions.popitem(last=False)
        return evicted
