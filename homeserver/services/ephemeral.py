"""The counter of what is not durable: typing and presence.

It begins at the time of the start in microseconds, so that it never runs backwards over a restart; who comes with a
position from before is known by that, and told how everything stands.
"""

from twisted.internet.interfaces import IReactorTime


class EphemeralCounter:
    """Positions that go up by one. For the reactor thread."""

    def __init__(self, clock: IReactorTime) -> None:
        self.position = int(clock.seconds() * 1_000_000)
        """The latest one."""

    def next(self) -> int:
        """Take one more."""
        self.position += 1
        return self.position
