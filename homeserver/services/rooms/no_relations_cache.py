"""A cache of the events that have no edits, thread replies or references, which are the children
that aggregations show. Most events have none, so the cache saves most queries for children.

Laws:
- An event enters the cache when no such children were found for a reader who ignores nobody. It
  leaves the cache when the stream reports a child.
- The cache is cleared when it is full, and after a write of another node, because such a write may
  have added children.
- An event that a local client sent after the start and the last clearing counts as cached until it
  has a child. No earlier event can refer to it, so the stream reports all its children.
- If a child or a write of another node arrives during a read, the read's result is not cached.
"""

from collections.abc import Iterable, Sequence, Set

from federation.protocol.ids import EventID
from federation.rooms.events import NO_TRANSACTION, StoredEvent
from storage.engine.streams import Change, Stage, Streams, Topic


class NoRelationsCache:
    """IDs of events without children. Use this class only on the reactor thread.

    No `LRU`: readers test many IDs at once against one set, so it is emptied when it is full.
    """

    def __init__(self, *, streams: Streams, capacity: int) -> None:
        """`capacity`: number of events; an entry takes about 40 bytes."""
        self._capacity = capacity
        self._known: set[str] = set()
        self._complete_since = streams.current()
        """The parents of all children after this position are in `_parents`."""
        self._parents: set[str] = set()
        """Parents of the children that arrived since then."""
        self.version = 0
        """Increases with each child that arrives."""
        streams.subscribe(self._on_changes, Topic.RELATION, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    @property
    def event_ids(self) -> Set[str]:
        """Some of the events that have no children."""
        return self._known

    def is_new_without_relations(self, event: StoredEvent) -> bool:
        """Whether one of our clients sent the event recently, and it has had no children since."""
        return (
            event.sent is not None
            and event.sent != NO_TRANSACTION
            and event.position is not None
            and event.position > self._complete_since
            and event.event.event_id not in self._parents
        )

    def add(self, event_ids: Iterable[EventID], version: int) -> None:
        """Cache events that had no children in a read that began when `version` had the given
        value."""
        if version != self.version:
            return
        self._known.update(event_ids)
        if len(self._known) > self._capacity:
            self._known.clear()

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.RELATION:
                self.version += 1
                if isinstance(change.detail, str) and len(self._parents) < self._capacity:
                    self._known.discard(change.detail)
                    self._parents.add(change.detail)
                else:
                    self._clear(change.position)

    def _on_remote_write(self, _after: int, upto: int) -> None:
        """Clear the cache: it is unknown which events have children now."""
        self.version += 1
        self._clear(upto)

    def _clear(self, upto: int) -> None:
        self._known.clear()
        self._parents.clear()
        self._complete_since = max(self._complete_since, upto)
