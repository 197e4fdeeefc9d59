"""Receives the changes that other nodes committed (`homeserver/cluster/outgoing_changes.py`), for
services that follow the stream.

When this node polls the database or writes, the positions that other nodes have written meanwhile
become readable here. Messages from these nodes describe the changes. They may arrive before the
positions become readable, afterwards, or never. If all messages about a range of positions arrive
before it becomes readable, `Streams.get_remote_changes` returns its changes to the watchers of the
stream (`Streams.watch`). In the other cases, the subscribers of `IncomingChanges` are notified.

Laws:

- If a range of positions becomes readable before its messages arrive, subscribers receive the
  changes of each message when it arrives. After `LATE_SECONDS`, missing messages count as lost, and
  subscribers are notified of the positions whose changes are unknown. They are notified immediately
  if this node is disconnected from the others, or if a message says that a range has too many
  changes to describe.
- Subscribers receive nothing about positions that are not readable yet.
- A message is dropped if its positions do not become readable within `PENDING_SECONDS`. The
  database may have lost the commit, for example in a failover. A later commit may then have the
  same positions.

Use this module only on the reactor thread.
"""

from collections.abc import Callable, Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime

from homeserver.cluster.node_messages import NodeMessages
from homeserver.cluster.outgoing_changes import KIND, CommitMessage, Range, subtract_ranges
from storage.engine.streams import Change, Stage, Streams

LATE_SECONDS: Final = 0.5
"""The time in seconds to wait for a late message."""
MAX_PENDING: Final = 1_000
"""The largest number of messages about positions that are not readable yet."""
PENDING_SECONDS: Final = 30.0
"""The time in seconds that such messages are kept: a node polls once a second."""

OnLate = Callable[[Sequence[Range], Sequence[Change]], None]
"""Called with ranges whose changes arrived after they became readable, and these changes."""
OnLost = Callable[[Sequence[Range]], None]
"""Called with ranges whose changes will never be known."""


class IncomingChanges:
    """Matches messages of other nodes with the positions that become readable."""

    def __init__(self, *, streams: Streams, clock: IReactorTime, messages: NodeMessages) -> None:
        self._streams = streams
        self._clock = clock
        self._messages = messages
        self._pending: list[tuple[float, CommitMessage]] = []
        """Messages about positions that may not be readable yet, with their arrival times, oldest
        first."""
        self._unknown: list[Range] = []
        """Ranges that are readable, but whose changes are not known."""
        self._last: tuple[Range, Sequence[Change] | None] | None = None
        self._subscribers: list[tuple[OnLate, OnLost]] = []
        messages.subscribe(KIND, CommitMessage, self._on_message)
        streams.set_remote_change_source(self._find_changes)
        streams.watch(self._on_remote_write, stage=Stage.NOTIFY)

    def subscribe(self, late: OnLate, lost: OnLost) -> None:
        """Subscribe to changes that were not known in time."""
        self._subscribers.append((late, lost))

    def _on_message(self, _node: int, message: CommitMessage) -> None:
        if message.ranges:
            self._pending = [*self._pending, (self._clock.seconds(), message)][-MAX_PENDING:]
            if message.upto <= self._streams.current():
                self._deliver()

    def _pending_messages(self) -> list[CommitMessage]:
        oldest = self._clock.seconds() - PENDING_SECONDS
        if self._pending and self._pending[0][0] < oldest:
            self._pending = [
                (arrived_at, message)
                for arrived_at, message in self._pending
                if arrived_at >= oldest
            ]
        return [message for _, message in self._pending]

    def _find_changes(self, after: int, upto: int) -> Sequence[Change] | None:
        range_ = (after, upto)
        if self._last is None or self._last[0] != range_:
            known = [message for message in self._pending_messages() if message.is_known]
            changes: Sequence[Change] | None = None
            if not subtract_ranges(
                [range_], [each for message in known for each in message.ranges]
            ):
                remote_changes = [
                    change
                    for message in known
                    for change in message.changes
                    if after < change.position <= upto
                ]
                changes = sorted(
                    (each.change for each in remote_changes), key=lambda change: change.position
                )
            self._last = (range_, changes)
        return self._last[1]

    def _on_remote_write(self, after: int, upto: int) -> None:
        if self._find_changes(after, upto) is None:
            self._unknown.append((after, upto))
        # in a later turn, when all subscribers know that the range is readable
        self._clock.callLater(0, self._deliver)

    def _deliver(self) -> None:
        """Deliver messages whose positions have become readable, and report late or lost ranges."""
        current = self._streams.current()
        readable = [message for message in self._pending_messages() if message.upto <= current]
        self._pending = [
            (arrived_at, message) for arrived_at, message in self._pending if message.upto > current
        ]
        for message in readable:
            left = subtract_ranges(self._unknown, message.ranges)
            late = subtract_ranges(self._unknown, left)
            self._unknown = left
            if late and message.is_known:
                changes = [
                    each.change
                    for each in message.changes
                    if any(low < each.position <= high for low, high in late)
                ]
                for on_late, _ in self._subscribers:
                    on_late(late, changes)
            elif late:
                self._report_lost(late)
        if self._unknown and self._messages.is_connected:
            self._clock.callLater(LATE_SECONDS, self._give_up, self._unknown[-1][1])
        elif self._unknown:
            self._give_up(current)

    def _give_up(self, upto: int) -> None:
        lost = [each for each in self._unknown if each[1] <= upto]
        if lost:
            self._unknown = [each for each in self._unknown if each[1] > upto]
            self._report_lost(lost)

    def _report_lost(self, ranges: Sequence[Range]) -> None:
        for _, on_lost in self._subscribers:
            on_lost(ranges)
