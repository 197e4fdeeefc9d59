"""Which events are known to have no children: most have none, and need not be looked up again and
again.

Laws:
- What is known was read when nobody's children were left out, and holds until the stream tells of a
  child.
- What a client of ours has sent since this began to listen is known too, for nobody can have named
  it before: all its children were heard of.
- What came on the stream while it was read, or from another node, makes nothing known.
"""

from collections.abc import Iterable, Sequence, Set

from federation.protocol.ids import EventID
from federation.rooms.events import NO_TRANSACTION, StoredEvent
from storage.engine.streams import Change, Stage, Streams, Topic


class ChildlessEvents:
    """Ids of events without children. For the reactor thread.

    No `LRU`: readers test many ids at once against one set, so it is emptied when it is full.
    """

    def __init__(self, streams: Streams, *, capacity: int) -> None:
        """`capacity` is in events; a place in the set takes some 40 bytes."""
        self._capacity = capacity
        self._known: set[str] = set()
        self._heard_from = streams.current()
        """Of every child that came after this position it is known whose it is."""
        self._parents: set[str] = set()
        """Whose children came since."""
        self.heard = 0
        """Moves with each child that comes."""
        streams.subscribe(self._on_changes, Topic.RELATED, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    @property
    def known(self) -> Set[str]:
        """Events without children; many that have none are not in it."""
        return self._known

    def is_new(self, event: StoredEvent) -> bool:
        """Whether one of our clients has sent it lately, and it has had no children since."""
        return (
            event.sent is not None
            and event.sent != NO_TRANSACTION
            and event.position is not None
            and event.position > self._heard_from
            and event.event.event_id not in self._parents
        )

    def note(self, event_ids: Iterable[EventID], heard: int) -> None:
        """These had none when `heard` was as given, nor were there any later."""
        if heard != self.heard:
            return
        self._known.update(event_ids)
        if len(self._known) > self._capacity:
            self._known.clear()

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.RELATED:
                self.heard += 1
                if isinstance(change.detail, str) and len(self._parents) < self._capacity:
                    self._known.discard(change.detail)
                    self._parents.add(change.detail)
                else:
                    self._forget(change.position)

    def _on_remote_write(self, _after: int, upto: int) -> None:
        """Another node wrote: which events have children now is not known here."""
        self.heard += 1
        self._forget(upto)

    def _forget(self, upto: int) -> None:
        self._known.clear()
        self._parents.clear()
        self._heard_from = max(self._heard_from, upto)
