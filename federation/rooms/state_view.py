"""The state of a room at one root, read key by key: immutable, so what was read once stays true.

A view keeps the entries that were asked for. The view of the next root is made from it by what
changed, so that a busy room finds the entries that every event needs (power levels, join rules, the
sender's membership) in a dict.
"""

from collections.abc import Iterable, Mapping

from federation.protocol.events import StateKey
from federation.rooms.events import RoomEvents, StoredEvent
from storage.state.state_tree import StateTreeStore

KEPT_ENTRIES = 512
"""Above this a view's successor starts with what is new only."""

MAX_ENTRIES = 2048
"""Above this a view begins to remember anew."""


class StateView:
    """Room state after some event. For the reactor thread."""

    __slots__ = ("_entries", "_events", "_trees", "room_nid", "root")

    def __init__(
        self,
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
        """These entries of the state, as far as they exist: no query when they were asked for
        before."""
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
            if len(entries) + len(read) > MAX_ENTRIES:
                entries.clear()  # anyone may ask for keys that nobody ever set
            entries.update(read)
        return {key: event for key, event in found.items() if event is not None}

    async def get(self, key: StateKey) -> StoredEvent | None:
        """One entry, or None."""
        return (await self.load([key])).get(key)

    async def load_nids(self, type: str | None = None) -> Mapping[tuple[str, str], int]:
        """The whole state, or what has that type, as numbers of events: grows with the room, not
        for hot paths."""
        if type is None:
            return await self._trees.get_all(self.room_nid, self.root)
        return await self._trees.get_by_type(self.room_nid, self.root, [type])

    async def load_all(self) -> dict[StateKey, StoredEvent]:
        """The whole state: grows with the room, not for hot paths."""
        nids = await self.load_nids()
        events = await self._events.get_events(nids.values())
        return {StateKey(*key): events[nid] for key, nid in nids.items()}

    def after(
        self, root: bytes | None, changes: Mapping[StateKey, StoredEvent | None]
    ) -> "StateView":
        """The view at the root that these changes lead to (None: the entry is gone)."""
        if root == self.root:
            return self
        kept = self._entries if len(self._entries) <= KEPT_ENTRIES else {}
        return StateView(self._trees, self._events, self.room_nid, root, {**kept, **changes})

    def forget(self) -> None:
        """Drop the entries that were read, since one of them has lost its content."""
        self._entries.clear()
