"""What other nodes have written, as they tell (`homeserver/cluster/outgoing_changes.py`): for those
here who keep things up by the stream.

A stretch of the one sequence becomes readable here when this node asks, or writes itself; what
another node tells of it may have come by then (`Streams.told` has it), come late, or not at all.

Laws:
- Of every stretch that was not told by then, whoever waits for the rest hears once each part is
  known, or within `PATIENCE` that it will not be.
- Nobody hears of what cannot be read yet.
- What is told of positions that do not come within `EARLY` is forgotten: whatever stands there
  later is something else.

For the reactor thread.
"""

from collections.abc import Callable, Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime

from homeserver.cluster.notify import NodeNotes
from homeserver.cluster.outgoing_changes import KIND, Range, Written, without
from storage.engine.streams import Change, Streams

PATIENCE: Final = 0.5
"""Seconds."""
MOST_EARLY: Final = 1_000
"""Notes about what cannot be read yet."""
EARLY: Final = 30.0
"""Seconds that they wait: a node asks once a second."""

Late = Callable[[Sequence[Range], Sequence[Change]], None]
"""Called with stretches that were not known as they became readable, and what changed in them."""
Lost = Callable[[Sequence[Range]], None]
"""Called with stretches of which nothing will be known."""


class NewsOfOthers:
    """Brings notes and positions together."""

    def __init__(self, streams: Streams, clock: IReactorTime, notes: NodeNotes) -> None:
        self._streams = streams
        self._clock = clock
        self._notes = notes
        self._early: list[tuple[float, Written]] = []
        """With the moments when they came, the oldest first."""
        self._unknown: list[Range] = []
        """Readable, and not known."""
        self._last: tuple[Range, Sequence[Change] | None] | None = None
        self._waiting: list[tuple[Late, Lost]] = []
        notes.register(KIND, Written, self._hear)
        streams.ask(self._told)
        streams.watch(self._heed_others)

    def wait_for(self, late: Late, lost: Lost) -> None:
        """Hear of what was not known in time."""
        self._waiting.append((late, lost))

    def _hear(self, _node: int, written: Written) -> None:
        if written.ranges:
            self._early = [*self._early, (self._clock.seconds(), written)][-MOST_EARLY:]
            if written.upto <= self._streams.current():
                self._settle()

    def _in_hand(self) -> list[Written]:
        oldest = self._clock.seconds() - EARLY
        if self._early and self._early[0][0] < oldest:
            self._early = [(came, note) for came, note in self._early if came >= oldest]
        return [note for _, note in self._early]

    def _told(self, after: int, upto: int) -> Sequence[Change] | None:
        stretch = (after, upto)
        if self._last is None or self._last[0] != stretch:
            known = [note for note in self._in_hand() if note.is_known]
            told: Sequence[Change] | None = None
            if not without([stretch], [each for note in known for each in note.ranges]):
                news = [
                    news for note in known for news in note.news if after < news.position <= upto
                ]
                told = sorted((each.change for each in news), key=lambda change: change.position)
            self._last = (stretch, told)
        return self._last[1]

    def _heed_others(self, after: int, upto: int) -> None:
        if self._told(after, upto) is None:
            self._unknown.append((after, upto))
        self._clock.callLater(0, self._settle)  # once all have heard that it is readable

    def _settle(self) -> None:
        """Tell what has become readable, or known."""
        current = self._streams.current()
        readable = [note for note in self._in_hand() if note.upto <= current]
        self._early = [(came, note) for came, note in self._early if note.upto > current]
        for note in readable:
            left = without(self._unknown, note.ranges)
            late = without(self._unknown, left)
            self._unknown = left
            if late and note.is_known:
                changes = [
                    news.change
                    for news in note.news
                    if any(low < news.position <= high for low, high in late)
                ]
                for hear, _ in self._waiting:
                    hear(late, changes)
            elif late:
                self._lose(late)
        if self._unknown and self._notes.is_connected:
            self._clock.callLater(PATIENCE, self._give_up, self._unknown[-1][1])
        elif self._unknown:
            self._give_up(current)

    def _give_up(self, upto: int) -> None:
        lost = [each for each in self._unknown if each[1] <= upto]
        if lost:
            self._unknown = [each for each in self._unknown if each[1] > upto]
            self._lose(lost)

    def _lose(self, ranges: Sequence[Range]) -> None:
        for _, lose in self._waiting:
            lose(ranges)
