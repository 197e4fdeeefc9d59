"""Caches how long the messages of each room are kept. Code that shows events asks once per page.

Laws:
- The room's present setting and the server's limits apply, whenever a message was sent.
- The database is read once, and again for the writes of other nodes. Only rooms with a setting cost
  memory.
- A server without rules has no such object, and readers do nothing.

proposal: MSC1763
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.protocol.retention import RetentionRules
from federation.rooms.events import StoredEvent
from storage.engine.streams import Change, Streams, Topic
from storage.retention.room_retention import RoomLifetime, RoomLifetimeStore


class Lifetimes:
    """Knows the retention of messages by room. For the reactor thread."""

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
        self._said: dict[int, int] | None = None
        """The settings of rooms that have one; None before the first read."""
        self._set_at: dict[int, int] = {}
        """Positions of the last known change of these rooms' settings, removals included."""
        self._upto = 0
        """Changes up to this position have been read."""
        self._changes_heard = 0
        self._log = Logger()
        streams.subscribe(self._hear, Topic.LIFETIME)
        streams.watch(self._heed_others)

    async def get(self, room_nids: Iterable[int]) -> Mapping[int, int]:
        """Return the lifetimes of messages in these rooms, in milliseconds; `UNBOUNDED` if they are
        kept forever."""
        said = await self._load()
        return {nid: self.rules.effective(said.get(nid)) for nid in room_nids}

    async def oldest_shown(self, room_nid: int) -> int:
        """Return the time in milliseconds since 1970 before which messages are not shown any
        more."""
        said = self._said
        if said is None:
            said = await self._load()
        return self._now_ms() - self.rules.effective(said.get(room_nid))

    def keeps(self, room_nid: int, events: Iterable[StoredEvent]) -> bool:
        """Return whether all of these events, of one room, are still shown.

        False also before the settings are read.
        """
        if self._said is None:
            return False
        oldest = self._now_ms() - self.rules.effective(self._said.get(room_nid))
        return not any(event.is_expired(oldest) for event in events)

    async def shows(self, stored: StoredEvent) -> bool:
        """Return whether the event is young enough to be shown."""
        return not stored.is_expired(await self.oldest_shown(stored.room_nid))

    async def _load(self) -> dict[int, int]:
        while self._said is None:
            heard = self._changes_heard
            rows, self._upto = await self._store.get_since(0)
            if heard == self._changes_heard:  # else there was a change during the read
                self._said = {}
                self._set_at = {}
                self._take(rows)
        return self._said

    def _take(self, rows: Iterable[RoomLifetime]) -> None:
        if self._said is None:
            return
        for row in rows:
            if row.position < self._set_at.get(row.room_nid, 0):
                continue  # an outdated row that arrived late
            self._set_at[row.room_nid] = row.position
            if row.max_lifetime is None:
                self._said.pop(row.room_nid, None)
            else:
                self._said[row.room_nid] = row.max_lifetime

    def _hear(self, changes: Sequence[Change]) -> None:
        self._changes_heard += 1
        self._take(change.detail for change in changes if isinstance(change.detail, RoomLifetime))

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Read the changes of another node."""
        self._changes_heard += 1
        Deferred.fromCoroutine(self._read_others()).addErrback(
            lambda failure: self._log.failure(
                "the message lifetimes that other nodes set could not be read", failure
            )
        )

    async def _read_others(self) -> None:
        rows, upto = await self._store.get_since(self._upto)
        self._upto = max(self._upto, upto)
        self._take(rows)
