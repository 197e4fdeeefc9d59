"""The state of rooms after each event, as immutable trees that share equal parts.

A state is identified by its root (None: the empty state). This is the root of a radix tree that
maps the numbers of the room's (type, state_key) pairs to the numbers of events. See `radix_tree.py`
for the tree, `keys.py` for the numbering, and `state_garbage_collection.py` for the deletion of
states that no event needs.

Laws:
- A root that is passed to `apply` belongs to an event or a head that the same transaction has read,
  or an earlier `apply` in this transaction returned it. The root that `apply` returns is stored
  with an event or a head in the same transaction. Otherwise a garbage collection may delete the
  nodes of these trees.
- `apply` writes all new nodes to the database, even those that are cached, because a cached node
  may have been deleted from the database.
- New nodes may be cached before the commit, because their IDs are hashes. New numbers of pairs may
  be cached only after the commit: after a rollback another pair may get the same number.
- A read costs one query for each level of the tree (1 to 4 levels) for all roots and keys together,
  and one query for the pairs that were numbered since the previous read. Methods named `…_in` run
  inside a read or a write. If everything is cached and not too large (`MAX_INLINE_KEYS`), the
  `async` methods use neither the database nor a thread. Only `get_entries_of_rooms` always reads in
  a thread.
- The methods that are not `async` may be called from any thread.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import compress, repeat
from operator import is_not
from typing import Protocol, TypeVar

from storage.engine.database import Database
from storage.engine.immutable_cache import ImmutableCache
from storage.engine.transaction import Transaction, WriteTransaction
from storage.state.keys import Numbering, StateKey, StateKeys
from storage.state.radix_tree import RadixTree

T = TypeVar("T")
Change = tuple[int | None, int | None]
"""The event_nids of one key in two states."""

_NODE_OVERHEAD = 150
"""Bytes that Python needs for a cached node besides its content: two bytes objects and a dictionary
entry."""

MAX_INLINE_KEYS = 4096
"""Complete states and parts by type are read on the calling thread up to this many keys, if they
are cached (it takes under a millisecond)."""

_SELECT_NODES = "SELECT node, content FROM state_nodes WHERE room_nid = ? AND node IN {keys}"

# While a collection runs in the room, new nodes belong to its cycle, so that they are not deleted
_INSERT_NODE = """
    INSERT INTO state_nodes (room_nid, node, content, cycle)
    VALUES (?, ?, ?, COALESCE((SELECT cycle FROM state_garbage_collections WHERE room_nid = ?), 0))
    ON CONFLICT (room_nid, node) DO UPDATE SET cycle = excluded.cycle
    WHERE state_nodes.cycle < excluded.cycle
"""


class _NotCached(Exception):
    """The result cannot be computed from the caches. The database is needed."""


class _NodeSource(Protocol):
    """Provides nodes and pairs of a room to a read."""

    def load(self, nodes: Iterable[bytes]) -> Mapping[bytes, bytes]: ...

    def keys(self, min_count: int) -> Numbering: ...


class StateTreeStore:
    """Stores the states of all rooms. The caches are bounded by `cache_bytes` of nodes and
    `cache_keys` (type, state_key) pairs."""

    def __init__(
        self, *, database: Database, cache_bytes: int = 64 << 20, cache_keys: int = 400_000
    ) -> None:
        self._database = database
        self._tree = RadixTree()
        self._nodes: ImmutableCache[bytes, bytes] = ImmutableCache(
            max_weight=cache_bytes, weigh=lambda node: len(node) + _NODE_OVERHEAD
        )
        self._keys = StateKeys(cache_keys)

    # Writing

    def apply(
        self,
        txn: WriteTransaction,
        room_nid: int,
        root: bytes | None,
        changes: Mapping[StateKey, int],
    ) -> bytes | None:
        """Write the state that differs from another by these event_nids. Return its root."""
        numbers = self._keys.intern(txn, room_nid, changes)
        changed, nodes = self._tree.apply(
            self._source(txn, room_nid).load,
            root,
            {numbers[pair]: nid for pair, nid in changes.items()},
        )
        if nodes:
            txn.execute_many(
                _INSERT_NODE,
                [(room_nid, node, content, room_nid) for node, content in nodes.items()],
            )
            self._nodes.put_all(nodes.items())
        return changed

    # Reading some keys

    def get_cached(
        self, room_nid: int, root: bytes | None, keys: Iterable[StateKey], types: Iterable[str] = ()
    ) -> dict[StateKey, int] | None:
        """Return the event_nids of the keys that are set, and of all pairs with one of the types,
        from the cache. None if that needs the database, or the types have too many keys."""
        if root is None:
            return {}
        known = self._keys.get_cached(room_nid)
        if known is None:
            return None
        # before the lookups: what is missing below this count does not exist
        count = known.count
        pairs: Sequence[StateKey] = tuple(keys)
        numbers = known.numbers_of(pairs)
        get = self._nodes.get
        if None in numbers or types:
            last = self._tree.find_last_key(get, root)
            if last is None or last >= count:
                return None
            pairs = list(compress(pairs, map(is_not, numbers, repeat(None))))
            by_type = list(map(known.numbers_of_type, types))
            if sum(map(len, by_type)) > MAX_INLINE_KEYS:
                return None
            of_types = [number for each in by_type for number in each if number < count]
            pairs += map(known.pair_of, of_types)
            numbers += of_types
        values = self._tree.find_all(
            get, root, [number for number in numbers if number is not None]
        )
        return None if values is None else dict(compress(zip(pairs, values, strict=True), values))

    async def get_entries(
        self, room_nid: int, root: bytes | None, keys: Iterable[StateKey]
    ) -> Mapping[StateKey, int]:
        """Return the event_nids of the keys that are set."""
        requested = tuple(keys)
        entries = self.get_cached(room_nid, root, requested)
        if entries is not None:
            return entries
        return await self._database.read(
            "get_state_entries", self.get_entries_in, room_nid, root, requested
        )

    def get_entries_in(
        self, txn: Transaction, room_nid: int, root: bytes | None, keys: Iterable[StateKey]
    ) -> Mapping[StateKey, int]:
        """Do `get_entries` in a transaction."""
        return self.get_entries_of_in(txn, room_nid, [root], keys)[root]

    async def get_entries_of_rooms(
        self, queries: Sequence[tuple[int, bytes | None, Sequence[StateKey], Collection[str]]]
    ) -> list[dict[StateKey, int]]:
        """Return for each (room_nid, root, keys, types) the event_nids of the keys that are set and
        of all pairs with one of the types, in one read."""
        return await self._database.read("get_state_entries_of_rooms", self._read_rooms_in, queries)

    def _read_rooms_in(
        self,
        txn: Transaction,
        queries: Sequence[tuple[int, bytes | None, Sequence[StateKey], Collection[str]]],
    ) -> list[dict[StateKey, int]]:
        found: list[dict[StateKey, int]] = []
        for room_nid, root, keys, types in queries:
            source = self._source(txn, room_nid)
            entries = dict(self._read_entries(source, (root,), keys)[root])
            found.append(entries | self._read_by_type(source, root, types) if types else entries)
        return found

    async def get_entries_of(
        self, room_nid: int, roots: Iterable[bytes | None], keys: Iterable[StateKey]
    ) -> Mapping[bytes | None, Mapping[StateKey, int]]:
        """Return the same keys of several states of a room, as needed for the visibility of many
        events: as many queries as for one."""
        distinct_roots, requested = tuple(dict.fromkeys(roots)), tuple(keys)
        found: dict[bytes | None, Mapping[StateKey, int]] = {}
        for root in distinct_roots:
            entries = self.get_cached(room_nid, root, requested)
            if entries is None:
                return await self._database.read(
                    "get_state_entries_of",
                    self.get_entries_of_in,
                    room_nid,
                    distinct_roots,
                    requested,
                )
            found[root] = entries
        return found

    def get_entries_of_in(
        self,
        txn: Transaction,
        room_nid: int,
        roots: Iterable[bytes | None],
        keys: Iterable[StateKey],
    ) -> Mapping[bytes | None, Mapping[StateKey, int]]:
        """Do `get_entries_of` in a transaction."""
        distinct_roots = tuple(dict.fromkeys(roots))
        return self._read_entries(self._source(txn, room_nid), distinct_roots, tuple(keys))

    def _read_entries(
        self, source: _NodeSource, roots: Collection[bytes | None], keys: Collection[StateKey]
    ) -> Mapping[bytes | None, Mapping[StateKey, int]]:
        present = [root for root in roots if root is not None]
        known = source.keys(0)
        if any(known.number_of(pair) is None for pair in keys):
            known = source.keys(self._tree.count_keys(source.load, present))
        numbers = {pair: number for pair in keys if (number := known.number_of(pair)) is not None}
        get = self._tree.gather(source.load, present, numbers.values()).get
        found: dict[bytes | None, Mapping[StateKey, int]] = {None: {}} if None in roots else {}
        for root in present:
            found[root] = {
                pair: value
                for pair, number in numbers.items()
                if (value := self._tree.find(get, root, number))
            }
        return found

    # Reading whole states

    async def get_all(self, room_nid: int, root: bytes | None) -> Mapping[StateKey, int]:
        """Return a complete state: event_nids by (type, state_key)."""
        return await self._read(
            "get_state", room_nid, [root], lambda source: self._read_all(source, root)
        )

    def get_all_in(
        self, txn: Transaction, room_nid: int, root: bytes | None
    ) -> Mapping[StateKey, int]:
        """Do `get_all` in a transaction."""
        return self._read_all(self._source(txn, room_nid), root)

    async def get_by_type(
        self, room_nid: int, root: bytes | None, types: Collection[str]
    ) -> Mapping[StateKey, int]:
        """Return the part of a state with these event types."""
        return await self._read(
            "get_state_by_type",
            room_nid,
            [root],
            lambda source: self._read_by_type(source, root, types),
        )

    async def get_all_but(
        self, room_nid: int, root: bytes | None, event_type: str
    ) -> Mapping[StateKey, int]:
        """Return a state without one event type. If that type is most of the state, its part is not
        read."""
        return await self._read(
            "get_state_but",
            room_nid,
            [root],
            lambda source: self._read_all_but(source, root, event_type),
        )

    async def get_diff(
        self, room_nid: int, a: bytes | None, b: bytes | None
    ) -> Mapping[StateKey, Change]:
        """Return the keys in which two states of a room differ, with the event_nids in `a` and in
        `b` (None: not set)."""
        if a == b:
            return {}
        return await self._read(
            "get_state_diff", room_nid, [a, b], lambda source: self._read_diff(source, a, b)
        )

    def _read_all(self, source: _NodeSource, root: bytes | None) -> dict[StateKey, int]:
        entries = self._tree.entries(source.load, root)
        if not entries:
            return {}
        pair_of = source.keys(next(reversed(entries)) + 1).pair_of
        return {pair_of(number): nid for number, nid in entries.items()}

    def _read_by_type(
        self, source: _NodeSource, root: bytes | None, types: Collection[str]
    ) -> dict[StateKey, int]:
        if root is None:
            return {}
        known = source.keys(self._tree.count_keys(source.load, [root]))
        numbers = sorted(number for name in set(types) for number in known.numbers_of_type(name))
        if len(numbers) * 8 > known.count:
            # most leaves are needed anyway, and a sequential read is faster
            entries = self._tree.entries(source.load, root)
            return {
                known.pair_of(number): nid for number in numbers if (nid := entries.get(number))
            }
        entries = self._tree.lookup(source.load, root, numbers)
        return {known.pair_of(number): nid for number, nid in entries.items()}

    def _read_all_but(
        self, source: _NodeSource, root: bytes | None, event_type: str
    ) -> dict[StateKey, int]:
        if root is None:
            return {}
        known = source.keys(self._tree.count_keys(source.load, [root]))
        return self._read_by_type(
            source, root, [name for name in known.types() if name != event_type]
        )

    def _read_diff(
        self, source: _NodeSource, a: bytes | None, b: bytes | None
    ) -> dict[StateKey, Change]:
        changes = self._tree.diff(source.load, a, b)
        if not changes:
            return {}
        pair_of = source.keys(max(changes) + 1).pair_of
        return {pair_of(number): change for number, change in changes.items()}

    async def _read(
        self,
        name: str,
        room_nid: int,
        roots: Iterable[bytes | None],
        read: Callable[[_NodeSource], T],
    ) -> T:
        """Read on the calling thread if all is cached and small, else in a database thread."""
        lasts = [
            self._tree.find_last_key(self._nodes.get, root) for root in roots if root is not None
        ]
        if all(last is not None and last < MAX_INLINE_KEYS for last in lasts):
            with suppress(_NotCached):
                return read(_Cached(nodes=self._nodes, keys=self._keys, room_nid=room_nid))
        return await self._database.read(name, self._read_in, room_nid, read)

    def _read_in(self, txn: Transaction, room_nid: int, read: Callable[[_NodeSource], T]) -> T:
        return read(self._source(txn, room_nid))

    def _source(self, txn: Transaction, room_nid: int) -> "_InTransaction":
        return _InTransaction(nodes=self._nodes, keys=self._keys, txn=txn, room_nid=room_nid)


class _InTransaction:
    """Reads from the caches, then from the database."""

    def __init__(
        self,
        *,
        nodes: ImmutableCache[bytes, bytes],
        keys: StateKeys,
        txn: Transaction,
        room_nid: int,
    ) -> None:
        self._nodes = nodes
        self._keys = keys
        self._txn = txn
        self._room_nid = room_nid

    def load(self, nodes: Iterable[bytes]) -> Mapping[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        missing: list[bytes] = []
        for node in nodes:
            content = self._nodes.get(node)
            if content is None:
                missing.append(node)
            else:
                found[node] = content
        if missing:
            rows = self._txn.query_in(_SELECT_NODES, missing, before=(self._room_nid,))
            read = {bytes(node): bytes(content) for node, content in rows}
            self._nodes.put_all(read.items())
            found |= read
        return found

    def keys(self, min_count: int) -> Numbering:
        return self._keys.get(self._txn, self._room_nid, min_count)


class _Cached:
    """Reads from the caches only."""

    def __init__(
        self, *, nodes: ImmutableCache[bytes, bytes], keys: StateKeys, room_nid: int
    ) -> None:
        self._nodes = nodes
        self._keys = keys
        self._room_nid = room_nid

    def load(self, nodes: Iterable[bytes]) -> Mapping[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for node in nodes:
            content = self._nodes.get(node)
            if content is None:
                raise _NotCached
            found[node] = content
        return found

    def keys(self, min_count: int) -> Numbering:
        known = self._keys.get_cached(self._room_nid)
        if known is None or known.count < min_count:
            raise _NotCached
        return known
