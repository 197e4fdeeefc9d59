"""The counter of what is not durable: typing and presence.

Its positions are times, in microseconds, each above the one before: so it does not run backwards
over a restart, and a position that a client has from before it, or from another node, says up to
when that client has heard of things. Nodes give one change the same position wherever they can, and
go on from that with which a client comes from another: else one that goes from node to node would
be told the same things again and again, at once. A client may say what it likes, though: it can
move a node so far ahead as a clock may be, and no node so far that the others do not follow it.
"""

from typing import Final

from twisted.internet.interfaces import IReactorTime

AHEAD: Final = 60_000_000
"""By so many microseconds another node's clock may be ahead of this one's, and its positions may be
ahead of its clock."""


class EphemeralCounter:
    """Gives out positions. For the reactor thread."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.position = int(clock.seconds() * 1_000_000)
        """The latest one."""

    def next(self) -> int:
        """Take one more."""
        self.position = max(self.position + 1, self._now())
        return self.position

    def take(self, position: int) -> int:
        """The position of something that another node told at this one: the same, where nothing
        later was told here."""
        return position if self._go_on_from(position, 2 * AHEAD) else self.next()

    def meet(self, position: int) -> None:
        """Go on from a position with which a client comes, if it is later."""
        self._go_on_from(position, AHEAD)

    def _go_on_from(self, position: int, ahead: int) -> bool:
        is_later = self.position < position <= self._now() + ahead
        if is_later:
            self.position = position
        return is_later

    def _now(self) -> int:
        return int(self._clock.seconds() * 1_000_000)
