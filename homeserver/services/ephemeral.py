"""The counter of what is not durable: typing and presence.

Its positions are times, in microseconds, each above the one before: so it does not run backwards over a restart, and a
position that a client has from before it, or from another node, says up to when that client has heard of things.
"""

from twisted.internet.interfaces import IReactorTime


class EphemeralCounter:
    """Gives out positions. For the reactor thread."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.position = int(clock.seconds() * 1_000_000)
        """The latest one."""

    def next(self) -> int:
        """Take one more."""
        self.position = max(self.position + 1, int(self._clock.seconds() * 1_000_000))
        return self.position
