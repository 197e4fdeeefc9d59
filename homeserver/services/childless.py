"""Which events are known to have no children: most have none, and need not be looked up again and again.

Laws:
- What is known was read when nobody's children were left out, and holds until the stream tells of a child.
- What came on the stream while it was read, or from another node, makes nothing known.
"""

from collections.abc import Iterable, Sequence, Set

from federation.protocol.ids import EventID
from storage.streams import Change, Streams, Topic


class ChildlessEvents:
    """Their ids. For the reactor thread."""

    def __init__(self, streams: Streams, *, capacity: int) -> None:
        """`capacity` is in events; a place in the set takes some 40 bytes."""
        self._capacity = capacity
        self._known: set[str] = set()
        self.heard = 0
        """Moves with each child that comes."""
        streams.subscribe(self._hear, Topic.RELATED)
        streams.watch(self._heed_others)

    @property
    def known(self) -> Set[str]:
        """Events without children; many that have none are not in it."""
        return self._known

    def note(self, event_ids: Iterable[EventID], heard: int) -> None:
        """These had none when `heard` was as given, nor were there any later."""
        if heard != self.heard:
            return
        self._known.update(event_ids)
        if len(self._known) > self._capacity:
            self._known.clear()

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.RELATED:
                self.heard += 1
                if isinstance(change.detail, str):
                    self._known.discard(change.detail)
                else:
                    self._known.clear()

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another node wrote: which events have children now is not known here."""
        self.heard += 1
        self._known.clear()
