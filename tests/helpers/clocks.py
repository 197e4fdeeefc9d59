"""Advances the clock of a server or of a network step by step."""

from typing import Any, Protocol

from twisted.internet.task import Clock


class Clocked(Protocol):
    """A server, or a network whose servers share a clock."""

    @property
    def clock(self) -> Clock: ...


def settle(clocked: Clocked) -> None:
    """Run everything that is due now."""
    for _ in range(20):
        clocked.clock.advance(0)


def pass_time(clocked: Clocked, seconds: float, step: float) -> None:
    """Advance the clock by `seconds`, in steps of at most `step` seconds, and settle after each."""
    end = clocked.clock.seconds() + seconds
    while (left := end - clocked.clock.seconds()) > 1e-6:
        clocked.clock.advance(min(step, left))
        settle(clocked)


class TurnCountingClock(Clock):
    """Counts the scheduled calls: how often long work let other work run."""

    taken = 0

    def callLater(self, *args: Any, **kwargs: Any) -> Any:
        self.taken += 1
        return super().callLater(*args, **kwargs)
