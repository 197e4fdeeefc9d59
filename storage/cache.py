"""Bounded caches: an LRU map, and two caches that the stream of changes keeps current.

- `LRU`: a map that evicts the least recently used entries. Nothing invalidates it.
- `StreamCache`: values of the database by key. A commit that changes a value invalidates it,
  whichever node made the commit.
- `StreamValue`: a `StreamCache` of one value, such as a complete small table.

All of them are for the reactor thread. Other threads use `storage.engine.immutable_cache`.
Its values never change, so it needs no stream.

`cachetools` does not fit: its caches have one bound, weigh values without their keys, do not count
hits, and cost four calls of Python functions for each key of a batch.

Why a `StreamCache` never returns a value older than the position of its reader (`Streams.current()`
at the call):

1. When a load begins, the stream is at some position P. Everything up to P is visible to its read,
   so the value has all changes up to P, and perhaps later ones.
2. A change above P is announced after the load began. The announcement removes the cached value of
   each key that it concerns, and detaches the load of that key. The result of a detached load is
   neither stored nor shared nor returned. The key is read again. If the changed keys are unknown,
   all values are removed and all loads are detached.
3. An announcement reaches caches before it wakes readers (`Stage.CACHE`). No other code runs
   between the end of a load and the moment when its value is stored.

So a stored value has every change that was announced before it was stored. If the value has later
changes too, their announcement removes it needlessly, which does no harm. A change that carries the
new value may update a cached value in place. Such a change detaches a load of its key as well.

Writes of another node are announced when they become readable on this node, with the changes that
its commit message describes. If the message describes no changes, is late or is lost, all values
are removed.

A pure function of few arguments uses `functools.lru_cache`. A small dictionary inside a cached
value uses `drop_oldest`. Ordered maps from which each entry is taken once, as in
`federation.sender`, are queues and not caches.

Some caches follow the stream but are no `StreamCache`, mostly because a change does more than
invalidate a key:

- `RoomEvents`, `RoomEngine`, `AccessTokens`, `PublishedKeyCache`: a write of another node does not
  remove all their entries, even if its changes are unknown. They ask the database what has changed,
  or compare a version.
- `Timelines`, `RecentChanges`, `UnreadCounts`, `NoRelationsCache`: these collect the newest
  changes. Each records the position from which it is complete.
- `RoomRuleClasses`: groups the members of a room by their push rules. If the rules or the
  membership of one user change, the cache moves only this user, when the room's next event is
  evaluated.
- `OneTimeKeyCounts`: a change carries a difference, which is subtracted from the count.
- `RoomRecency`, `RoomTraitCache`: room lists look up thousands of rooms, and a method call for each
  would be slow. So readers get the whole dictionary. It is emptied when it is full.
"""

from collections import OrderedDict, deque
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from storage.engine.streams import Change, Stage, Streams, Topic

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MISSING = object()


class LRU(Generic[K, V]):
    """A map with a bound on entries, on weight, or on both. `get` and `get_many` count as use."""

    __slots__ = (
        "_entries",
        "_max_entries",
        "_max_entry",
        "_max_weight",
        "_on_remove",
        "_weigh",
        "_weights",
        "hits",
        "misses",
        "weight",
    )

    def __init__(
        self,
        *,
        max_entries: int | None = None,
        max_weight: int | None = None,
        weigh: Callable[[K, V], int] | None = None,
        largest_share: int = 1,
        on_remove: Callable[[K, V], object] | None = None,
    ) -> None:
        """`weigh` returns the weight of an entry, which `max_weight` limits. An entry heavier than
        `max_weight` divided by `largest_share` is not stored. `on_remove` is called for each entry
        that leaves the map for any reason."""
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._max_entries = max_entries
        self._max_weight = max_weight
        self._max_entry = None if max_weight is None else max_weight // largest_share
        self._weigh = weigh
        self._weights: dict[K, int] = {}
        self._on_remove = on_remove
        self.weight = 0
        """The total weight; 0 without `weigh`."""
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys, least recently used first."""
        return iter(self._entries)

    def items(self) -> Iterable[tuple[K, V]]:
        """Return the entries, least recently used first. Does not count as use."""
        return self._entries.items()

    def values(self) -> Collection[V]:
        """Return the values, in the order of `items`."""
        return self._entries.values()

    def get(self, key: K) -> V | None:
        """Return the value, or None if it is not cached."""
        entries = self._entries
        if key not in entries:
            self.misses += 1
            return None
        self.hits += 1
        entries.move_to_end(key)
        return entries[key]

    def get_many(self, keys: Collection[K]) -> dict[K, V]:
        """Return the cached values of these keys, in the order of the keys."""
        entries = self._entries
        found = {key: entries[key] for key in keys if key in entries}
        deque(map(entries.move_to_end, found), maxlen=0)
        self.hits += len(found)
        self.misses += len(keys) - len(found)
        return found

    def peek(self, key: K) -> V | None:
        """Like `get`, but neither a use nor a hit."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        """Store a value. Replaces the previous one."""
        weight = 0 if self._weigh is None else self._weigh(key, value)
        self.pop(key)
        if self._max_entry is not None and weight > self._max_entry:
            if self._on_remove is not None:
                self._on_remove(key, value)
            return
        self._entries[key] = value
        if weight:
            self._weights[key] = weight
            self.weight += weight
        self._evict()

    def reweigh(self, key: K) -> None:
        """Weigh a value again after it was changed in place, if it is cached."""
        if self._weigh is None or key not in self._entries:
            return
        weight = self._weigh(key, self._entries[key])
        self.weight += weight - self._weights.get(key, 0)
        self._weights[key] = weight
        if self._max_entry is not None and weight > self._max_entry:
            self.pop(key)
        self._evict()

    def pop(self, key: K) -> V | None:
        """Remove an entry, if it is cached. Return its value."""
        value = self._entries.pop(key, _MISSING)
        if value is _MISSING:
            return None
        self.weight -= self._weights.pop(key, 0)
        if self._on_remove is not None:
            self._on_remove(key, value)  # type: ignore[arg-type]
        return value  # type: ignore[return-value]

    def clear(self) -> None:
        """Remove all entries."""
        removed, self._entries = self._entries, OrderedDict()
        self._weights.clear()
        self.weight = 0
        if self._on_remove is not None:
            for key, value in removed.items():
                self._on_remove(key, value)

    def _evict(self) -> None:
        entries, max_entries, max_weight = self._entries, self._max_entries, self._max_weight
        while (max_entries is not None and len(entries) > max_entries) or (
            max_weight is not None and self.weight > max_weight
        ):
            self.pop(next(iter(entries)))


def drop_oldest(entries: dict[K, V], max_entries: int) -> None:
    """Remove the entries that were added first, until there are at most `max_entries`. For small
    dictionaries: the time grows with the number of entries that were removed."""
    while len(entries) > max_entries:
        del entries[next(iter(entries))]


class _Load(Generic[K, V]):
    """A running read of some keys."""

    def __init__(self) -> None:
        self.values: dict[K, V] = {}
        """Values of the keys that were not invalidated meanwhile."""
        self._waiting: list[Deferred[None]] = []

    async def wait(self) -> None:
        """Return when the read has ended. Raises its error."""
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        await done

    def end(self, failure: Failure | None) -> None:
        """Resume all waiting readers."""
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            if done.called:
                continue
            if failure is None:
                done.callback(None)
            else:
                done.errback(failure)


class StreamCache(Generic[K, V]):
    """A cache of database values by key. The header of the module proves that they are current."""

    def __init__(
        self,
        streams: Streams,
        *topics: Topic,
        load: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]] | None = None,
        keys_of: Callable[[Change], Iterable[K] | None],
        update: Callable[[V, Change], bool] | None = None,
        max_entries: int | None = None,
        max_weight: int | None = None,
        weigh: Callable[[K, V], int] | None = None,
        largest_share: int = 1,
    ) -> None:
        """A cache that listens to changes of these topics.

        - `load` reads values. It returns one for every key that it is given, also for a key that
          does not exist: so that is cached too. None: values come by `put` only.
        - `keys_of`: the keys that a change invalidates; None: all keys. A change of another node
          may lack its room ID and its detail, or have an `EventSummary` in place of an `EventRow`.
        - `update` changes a cached value in place, by a change of this node that concerns it, and
          returns whether it could. If not, the value is dropped.
        - The bounds are those of an `LRU`.
        """
        self._streams = streams
        self._topics = frozenset(topics)
        self._load = load
        self._keys_of = keys_of
        self._update = update
        self._values: LRU[K, V] = LRU(
            max_entries=max_entries, max_weight=max_weight, weigh=weigh, largest_share=largest_share
        )
        self._loads: dict[K, _Load[K, V]] = {}
        self.changes = 0
        """Increases with every change that invalidates or updates a value."""
        streams.subscribe(self._on_changes, *topics, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    @property
    def hits(self) -> int:
        """The number of values that were cached."""
        return self._values.hits

    @property
    def misses(self) -> int:
        """The number of values that had to be loaded."""
        return self._values.misses

    @property
    def weight(self) -> int:
        """The total weight of all values."""
        return self._values.weight

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    async def get(self, key: K) -> V:
        """Return the value of one key, current when this returns."""
        if key in self._values:
            return self._values.get(key)  # type: ignore[return-value]
        return (await self.get_many((key,)))[key]

    async def get_many(self, keys: Iterable[K]) -> dict[K, V]:
        """Return the values of some keys, none older than this call. Missing ones are read in one
        load."""
        wanted = tuple(keys)
        found = self._values.get_many(wanted)
        while missing := [key for key in wanted if key not in found]:
            own = tuple(dict.fromkeys([key for key in missing if key not in self._loads]))
            if own:
                load = _Load[K, V]()
                self._loads.update(dict.fromkeys(own, load))
                await self._run(load, own)
            else:
                load = self._loads[missing[0]]
                await load.wait()
            for key in missing:
                if key in load.values:
                    found[key] = load.values[key]
                elif key in self._values:
                    found[key] = self._values.peek(key)  # type: ignore[assignment]
        return found

    def find(self, key: K) -> V | None:
        """Return the value of a key if it is cached, else None. Does not count as a miss."""
        return self._values.get(key) if key in self._values else None

    def find_many(self, keys: Collection[K]) -> dict[K, V]:
        """Return the cached values of these keys."""
        return self._values.get_many(keys)

    def put(self, key: K, value: V, *, since: int) -> bool:
        """Store a value that was read for another purpose, unless something has changed since.
        Return whether it was stored. `since`: `changes` before that read began."""
        if since != self.changes:
            return False
        self._values.put(key, value)
        return True

    def reweigh(self, key: K) -> None:
        """Weigh a value again after it was changed in place."""
        self._values.reweigh(key)

    def invalidate(self, key: K) -> None:
        """Drop the value of a key that has changed, or may have."""
        self.changes += 1
        self._loads.pop(key, None)
        self._values.pop(key)

    def invalidate_all(self) -> None:
        """Drop all values."""
        self.changes += 1
        self._loads.clear()
        self._values.clear()

    async def _run(self, load: _Load[K, V], keys: Sequence[K]) -> None:
        failure: Failure | None = None
        try:
            if self._load is None:
                raise LookupError("this cache cannot load values")
            read = await self._load(keys)
            for key in keys:
                if self._loads.get(key) is load:
                    load.values[key] = read[key]
                    self._values.put(key, read[key])
        except CancelledError:
            raise  # only this reader is cancelled: the others read again
        except Exception:
            failure = Failure()
            raise
        finally:
            for key in keys:
                if self._loads.get(key) is load:
                    del self._loads[key]
            load.end(failure)

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic in self._topics:
                self._apply(change, self._update)

    def _on_remote_write(self, after: int, upto: int) -> None:
        changes = self._streams.get_remote_changes(after, upto)
        if changes is None:
            self.invalidate_all()
            return
        for change in changes:
            if change.topic in self._topics:
                self._apply(change, None)

    def _apply(self, change: Change, update: Callable[[V, Change], bool] | None) -> None:
        keys = self._keys_of(change)
        if keys is None:
            self.invalidate_all()
            return
        for key in keys:
            self.changes += 1
            self._loads.pop(key, None)
            if key not in self._values:
                continue
            value: V = self._values.peek(key)  # type: ignore[assignment]
            if update is not None and update(value, change):
                self._values.reweigh(key)
            else:
                self._values.pop(key)


class StreamValue(Generic[V]):
    """One value of the database, such as a complete small table."""

    def __init__(
        self,
        streams: Streams,
        *topics: Topic,
        load: Callable[[], Awaitable[V]],
        concerns: Callable[[Change], bool] = lambda _: True,
        update: Callable[[V, Change], bool] | None = None,
    ) -> None:
        """`concerns` returns whether a change of these topics changes the value. `load` and
        `update`: as for a `StreamCache`."""

        async def load_all(_: Sequence[None]) -> Mapping[None, V]:
            return {None: await load()}

        self._cache: StreamCache[None, V] = StreamCache(
            streams,
            *topics,
            load=load_all,
            keys_of=lambda change: (None,) if concerns(change) else (),
            update=update,
            max_entries=1,
        )

    async def get(self) -> V:
        """Return the value, current when this returns."""
        return await self._cache.get(None)

    def find(self) -> V | None:
        """Return the value if it is cached, else None."""
        return self._cache.find(None)

    def invalidate(self) -> None:
        """Drop the value: it has changed, or may have."""
        self._cache.invalidate(None)
