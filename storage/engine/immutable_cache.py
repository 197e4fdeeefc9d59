"""A bounded cache for what never changes: nothing is invalidated, only forgotten.

It keeps two generations. What is used moves to the young one; when that has half of the permitted
weight, it becomes the old one and the former old one is forgotten. That forgets nearly what an
exact order of use would, without keeping one.

Threads: `get` touches each dictionary by single operations, which are atomic; what changes a
generation holds a lock. A reader that races with a change of generations may miss something that is
there, never find something wrong.
"""

from collections.abc import Callable, Hashable, Iterable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ImmutableCache(Generic[K, V]):
    """Up to `max_weight` of values, as `weigh` counts them. No `LRU`: several threads use it."""

    def __init__(self, max_weight: int, weigh: Callable[[V], int]) -> None:
        self._half = max_weight // 2
        self._weigh = weigh
        self._lock = Lock()
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._weight = 0

    def get(self, key: K) -> V | None:
        """The value, or None if it is not (or no longer) here."""
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put_all([(key, value)])
        return value

    def put_all(self, items: Iterable[tuple[K, V]]) -> None:
        """Keep these."""
        with self._lock:
            for key, value in items:
                if key not in self._young:
                    self._young[key] = value
                    self._add_weight(self._weigh(value))

    def put_if_absent(self, key: K, value: V) -> V:
        """The value that is here already, else this one, which is kept."""
        with self._lock:
            present = self._young.get(key)
            if present is None:
                present = self._old.get(key, value)
                self._young[key] = present
                self._add_weight(self._weigh(present))
            return present

    def note_growth(self, weight: int) -> None:
        """A value that only grows (it counts as unchanging too) has become heavier."""
        with self._lock:
            self._add_weight(weight)

    def _add_weight(self, weight: int) -> None:
        self._weight += weight
        if self._weight > self._half:
            self._old, self._young, self._weight = self._young, {}, 0
