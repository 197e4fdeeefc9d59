"""How long the messages of each room are kept, from memory: whoever shows events asks here, once
for a page.

Laws:
- What counts is what the room says now, whenever a message was sent, and what the server allows.
- Nothing is asked of the database but at first, and of what other nodes wrote; only rooms that say
  something cost memory.
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
    """Knows them. For the reactor thread."""

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
        """What rooms say, of those that say something; None: that has not been read yet."""
        self._set_at: dict[int, int] = {}
        """Positions at which these rooms said what is known of them, or that they say nothing any
        more."""
        self._upto = 0
        """What was set up to this position has been read."""
        self._changes_heard = 0
        self._log = Logger()
        streams.subscribe(self._hear, Topic.LIFETIME)
        streams.watch(self._heed_others)

    async def get(self, room_nids: Iterable[int]) -> Mapping[int, int]:
        """The lifetimes of messages in these rooms, in milliseconds; `UNBOUNDED` for those in which
        they stay."""
        said = await self._load()
        return {nid: self.rules.effective(said.get(nid)) for nid in room_nids}

    async def oldest_shown(self, room_nid: int) -> int:
        """Messages of the room that were sent before this time are shown to nobody any more.
        Milliseconds since 1970."""
        said = self._said
        if said is None:
            said = await self._load()
        return self._now_ms() - self.rules.effective(said.get(room_nid))

    def keeps(self, room_nid: int, events: Iterable[StoredEvent]) -> bool:
        """Whether all of these, of one room, are still shown. False too where what rooms say has
        not been read yet."""
        if self._said is None:
            return False
        oldest = self._now_ms() - self.rules.effective(self._said.get(room_nid))
        return not any(event.is_expired(oldest) for event in events)

    async def shows(self, stored: StoredEvent) -> bool:
        """Whether the event is still to be shown, as far as its age goes."""
        return not stored.is_expired(await self.oldest_shown(stored.room_nid))

    async def _load(self) -> dict[int, int]:
        while self._said is None:
            heard = self._changes_heard
            rows, self._upto = await self._store.get_since(0)
            if heard == self._changes_heard:  # else something was set while it was read
                self._said = {}
                self._set_at = {}
                self._take(rows)
        return self._said

    def _take(self, rows: Iterable[RoomLifetime]) -> None:
        if self._said is None:
            return
        for row in rows:
            if row.position < self._set_at.get(row.room_nid, 0):
                continue  # it was read before, and comes later than what was said since
            self._set_at[row.room_nid] = row.position
            if row.max_lifetime is None:
                self._said.pop(row.room_nid, None)
            else:
                self._said[row.room_nid] = row.max_lifetime

    def _hear(self, changes: Sequence[Change]) -> None:
        self._changes_heard += 1
        self._take(change.detail for change in changes if isinstance(change.detail, RoomLifetime))

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another node has written: perhaps that a room says something else."""
        self._changes_heard += 1
        Deferred.fromCoroutine(self._read_others()).addErrback(
            lambda failure: self._log.failure(
                "it is not known how long messages are kept, as other nodes set it", failure
            )
        )

    async def _read_others(self) -> None:
        rows, upto = await self._store.get_since(self._upto)
        self._upto = max(self._upto, upto)
        self._take(rows)
