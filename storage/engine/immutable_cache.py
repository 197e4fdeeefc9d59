"""A bounded cache of immutable values. Entries are evicted but never invalidated.

The cache has two generations, a young and an old one. A value that is used moves to the young
generation. When the young generation exceeds half of the maximum weight, it becomes the old one,
and the former old generation is evicted. The effect is close to that of an LRU cache, without its
cost for each access.

Threads: `get` uses single dictionary operations, which are atomic. Changing a generation takes a
lock. A reader during a change of generations may miss a cached value, but never gets a wrong one.
"""

from collections.abc import Callable, Hashable, Iterable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ImmutableCache(Generic[K, V]):
    """Stores values up to `max_weight`, measured by `weigh`. It is no `LRU`, because several
    threads use it."""

    def __init__(self, *, max_weight: int, weigh: Callable[[V], int]) -> None:
        self._half = max_weight // 2
        self._weigh = weigh
        self._lock = Lock()
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._weight = 0

    def get(self, key: K) -> V | None:
        """Return the value, or None if it is not cached."""
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put_all([(key, value)])
        return value

    def put_all(self, items: Iterable[tuple[K, V]]) -> None:
        """Cache these values."""
        with self._lock:
            for key, value in items:
                if key not in self._young:
                    self._young[key] = value
                    self._add_weight(self._weigh(value))

    def put_if_absent(self, key: K, value: V) -> V:
        """Return the cached value. If there is none, cache this one and return it."""
        with self._lock:
            present = self._young.get(key)
            if present is None:
                present = self._old.get(key, value)
                self._young[key] = present
                self._add_weight(self._weigh(present))
            return present

    def record_growth(self, weight: int) -> None:
        """Record that a cached value became heavier. A value that only grows counts as
        immutable."""
        with self._lock:
            self._add_weight(weight)

    def _add_weight(self, weight: int) -> None:
        self._weight += weight
        if self._weight > self._half:
            self._old, self._young, self._weight = self._young, {}, 0
