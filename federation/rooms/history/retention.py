"""Caches the retention periods of rooms. Readers look up the period once for each page of events.

Laws:
- The room's current retention policy applies to all messages, also to those sent before the policy
  was set. The server's configuration limits the period that a policy can set.
- Only rooms that have a policy use memory.
- If the configuration does not enable retention, this cache is not created.

proposal: MSC1763
"""

from collections.abc import Callable, Iterable, Mapping

from federation.protocol.retention import RetentionRules
from federation.rooms.events import StoredEvent
from storage.cache import StreamValue
from storage.engine.streams import Change, Streams, Topic
from storage.retention.room_retention import RoomRetention, RoomRetentionStore


class RoomRetentionCache:
    """Returns how long messages are stored and shown. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        store: RoomRetentionStore,
        streams: Streams,
        rules: RetentionRules,
        now_ms: Callable[[], int],
    ) -> None:
        self.rules = rules
        self._store = store
        self._now_ms = now_ms
        self._rooms: StreamValue[dict[int, int]] = StreamValue(
            streams, Topic.RETENTION, load=self._load, update=_update
        )
        """The policies of the rooms that have one, in milliseconds."""

    async def get(self, room_nids: Iterable[int]) -> Mapping[int, int]:
        """Return the lifetimes of messages in these rooms, in milliseconds; `UNBOUNDED` if they are
        kept forever."""
        rooms = await self._rooms.get()
        return {nid: self.rules.effective(rooms.get(nid)) for nid in room_nids}

    async def get_oldest_shown(self, room_nid: int) -> int:
        """Return the time in milliseconds since 1970 before which the room's messages are not shown
        any more."""
        rooms = self._rooms.find()
        if rooms is None:
            rooms = await self._rooms.get()
        return self._now_ms() - self.rules.effective(rooms.get(room_nid))

    def shows_all(self, room_nid: int, events: Iterable[StoredEvent]) -> bool:
        """Return whether all of these events, of one room, are still shown.

        False also if the policies are not cached.
        """
        rooms = self._rooms.find()
        if rooms is None:
            return False
        oldest = self._now_ms() - self.rules.effective(rooms.get(room_nid))
        return not any(event.is_expired(oldest) for event in events)

    async def shows(self, stored: StoredEvent) -> bool:
        """Return whether the event is young enough to be shown."""
        return not stored.is_expired(await self.get_oldest_shown(stored.room_nid))

    async def _load(self) -> dict[int, int]:
        rows, _ = await self._store.get_since(0)
        return {row.room_nid: row.max_lifetime for row in rows if row.max_lifetime is not None}


def _update(rooms: dict[int, int], change: Change) -> bool:
    row = change.detail
    if not isinstance(row, RoomRetention):
        return False
    if row.max_lifetime is None:
        rooms.pop(row.room_nid, None)
    else:
        rooms[row.room_nid] = row.max_lifetime
    return True
