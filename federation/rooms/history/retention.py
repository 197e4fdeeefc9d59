"""A cache of how long the messages of each room are kept. Readers ask once for each page.

Laws:
- The present policy of the room counts, whenever a message was sent, within what the server allows.
- Only rooms that have a policy cost memory.
- A server without retention rules has no such object.

proposal: MSC1763
"""

from collections.abc import Callable, Iterable, Mapping

from federation.protocol.retention import RetentionRules
from federation.rooms.events import StoredEvent
from storage.cache import StreamValue
from storage.engine.streams import Change, Streams, Topic
from storage.retention.room_retention import RoomLifetime, RoomLifetimeStore


class Lifetimes:
    """Tells how long messages are kept, and shown. For the reactor thread."""

    def __init__(
        self,
        store: RoomLifetimeStore,
        streams: Streams,
        rules: RetentionRules,
        now_ms: Callable[[], int],
    ) -> None:
        self.rules = rules
        self._store = store
        self._now_ms = now_ms
        self._rooms: StreamValue[dict[int, int]] = StreamValue(
            streams, Topic.LIFETIME, load=self._load, update=_update
        )
        """The policies of the rooms that have one, in milliseconds."""

    async def get(self, room_nids: Iterable[int]) -> Mapping[int, int]:
        """The lifetimes of messages in these rooms, in milliseconds; `UNBOUNDED` for those in which
        they stay."""
        rooms = await self._rooms.get()
        return {nid: self.rules.effective(rooms.get(nid)) for nid in room_nids}

    async def oldest_shown(self, room_nid: int) -> int:
        """Messages of the room that were sent before this time are not shown any more. Milliseconds
        since 1970."""
        rooms = self._rooms.find()
        if rooms is None:
            rooms = await self._rooms.get()
        return self._now_ms() - self.rules.effective(rooms.get(room_nid))

    def keeps(self, room_nid: int, events: Iterable[StoredEvent]) -> bool:
        """Whether all of these events, of one room, are still shown. False also if the policies are
        not cached."""
        rooms = self._rooms.find()
        if rooms is None:
            return False
        oldest = self._now_ms() - self.rules.effective(rooms.get(room_nid))
        return not any(event.is_expired(oldest) for event in events)

    async def shows(self, stored: StoredEvent) -> bool:
        """Whether the event is not too old to be shown."""
        return not stored.is_expired(await self.oldest_shown(stored.room_nid))

    async def _load(self) -> dict[int, int]:
        rows, _ = await self._store.get_since(0)
        return {row.room_nid: row.max_lifetime for row in rows if row.max_lifetime is not None}


def _update(rooms: dict[int, int], change: Change) -> bool:
    row = change.detail
    if not isinstance(row, RoomLifetime):
        return False
    if row.max_lifetime is None:
        rooms.pop(row.room_nid, None)
    else:
        rooms[row.room_nid] = row.max_lifetime
    return True
