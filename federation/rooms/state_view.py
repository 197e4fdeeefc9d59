"""The state of a room at one root, read key by key. It is immutable, so its entries are cached.

The view of the next root takes over the cached entries, with the changes applied. So in a busy room
the entries that every event needs (power levels, join rules, the sender's membership) are in
memory.
"""

from collections.abc import Iterable, Mapping

from federation.protocol.events import StateKey
from federation.rooms.events import RoomEvents, StoredEvent
from storage.state.state_tree import StateTreeStore

MAX_INHERITED = 512
"""With more entries than this, the next view inherits only the changes."""

MAX_ENTRIES = 2048
"""With more entries than this, the cache of a view is emptied."""


class StateView:
    """The room state after some event. Use this class only on the reactor thread."""

    __slots__ = ("_entries", "_events", "_trees", "room_nid", "root")

    def __init__(
        self,
        *,
        trees: StateTreeStore,
        events: RoomEvents,
        room_nid: int,
        root: bytes | None,
        entries: dict[StateKey, StoredEvent | None] | None = None,
    ) -> None:
        self._trees = trees
        self._events = events
        self.room_nid = room_nid
        self.root = root
        self._entries = {} if entries is None else entries

    async def load(self, keys: Iterable[StateKey]) -> dict[StateKey, StoredEvent]:
        """Return these entries of the state, as far as they exist. Cached ones need no query."""
        entries = self._entries
        found: dict[StateKey, StoredEvent | None] = {}
        missing: list[StateKey] = []
        for key in keys:
            if key in entries:
                found[key] = entries[key]
            else:
                missing.append(key)
        if missing and self.root is not None:
            nids = await self._trees.get_entries(self.room_nid, self.root, missing)
            events = await self._events.get_events(nids.values())
            read = {key: None if (nid := nids.get(key)) is None else events[nid] for key in missing}
            found.update(read)
            # anyone may request keys that were never set; no `LRU`: there is a view for each state,
            # and mostly it has few entries
            if len(entries) + len(read) > MAX_ENTRIES:
                entries.clear()
            entries.update(read)
        return {key: event for key, event in found.items() if event is not None}

    async def get(self, key: StateKey) -> StoredEvent | None:
        """Return one entry, or None."""
        return (await self.load([key])).get(key)

    async def load_nids(self, type: str | None = None) -> Mapping[tuple[str, str], int]:
        """Return the complete state, or the entries of one type, as event numbers.

        Its cost grows with the room: not for hot paths.
        """
        if type is None:
            return await self._trees.get_all(self.room_nid, self.root)
        return await self._trees.get_by_type(self.room_nid, self.root, [type])

    async def load_all(self) -> dict[StateKey, StoredEvent]:
        """Return the complete state. Its cost grows with the room: not for hot paths."""
        nids = await self.load_nids()
        events = await self._events.get_events(nids.values())
        return {StateKey(*key): events[nid] for key, nid in nids.items()}

    def after(
        self, root: bytes | None, changes: Mapping[StateKey, StoredEvent | None]
    ) -> "StateView":
        """Return the view at the root that these changes lead to (None: the entry is removed)."""
        if root == self.root:
            return self
        inherited = self._entries if len(self._entries) <= MAX_INHERITED else {}
        return StateView(
            trees=self._trees,
            events=self._events,
            room_nid=self.room_nid,
            root=root,
            entries={**inherited, **changes},
        )

    def clear_cache(self) -> None:
        """Empty the cache, because an event in it has lost its content."""
        self._entries.clear()
