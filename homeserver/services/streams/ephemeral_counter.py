"""The ephemeral counter: positions of typing and presence changes, which are not durable.

A position is a time in microseconds, greater than the previous position. So the counter does not
run backwards after a restart. If a client has its position from before a restart, or from another
node, the position still says which changes the client has seen.

A client that moves between nodes should not get the same changes repeatedly:
- A typing change gets the same position on every node. But a node assigns a new position if its
  counter has already reached that position, or if that position is too far ahead of its clock.
- A node advances its counter to the position that a client sends. Since a client can send any
  number, the node ignores a position more than MAX_CLOCK_SKEW_US ahead of its clock. From another
  node it accepts positions up to twice as far ahead, because the clocks of two nodes differ, too.
"""

from typing import Final

from twisted.internet.interfaces import IReactorTime

MAX_CLOCK_SKEW_US: Final = 60_000_000
"""Microseconds by which another node's clock may be ahead of ours, and its positions ahead of its
clock."""


class EphemeralCounter:
    """Assigns positions. Use this class only on the reactor thread."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.position = int(clock.seconds() * 1_000_000)
        """The latest position."""

    def next(self) -> int:
        """Return a new position."""
        self.position = max(self.position + 1, self._now())
        return self.position

    def adopt_position(self, position: int) -> int:
        """Return the position of a change that another node announced at `position`: the same if
        it is later than the counter and not too far ahead of the clock, else a new one."""
        return position if self._advance(position, 2 * MAX_CLOCK_SKEW_US) else self.next()

    def advance_to(self, position: int) -> None:
        """Advance to a client's position if it is later."""
        self._advance(position, MAX_CLOCK_SKEW_US)

    def _advance(self, position: int, ahead: int) -> bool:
        is_later = self.position < position <= self._now() + ahead
        if is_later:
            self.position = position
        return is_later

    def _now(self) -> int:
        return int(self._clock.seconds() * 1_000_000)
