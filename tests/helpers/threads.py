"""Replaces the threads that hash passwords, so that tests run without threads."""

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class InlineThreads:
    """Does the work at once, and counts it; or holds it back, until it is let go. `meanwhile`: what
    happens during the next piece."""

    def __init__(self) -> None:
        self.runs = 0
        self.held: list[Deferred[None]] = []
        self.meanwhile: Callable[[], object] | None = None
        self._holds = False

    async def run(self, work: Callable[[], T], asker: str = "") -> T:
        self.runs += 1
        if self._holds:
            self.held.append(Deferred())
            await self.held[-1]
        done = work()
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            happens()
        return done

    def hold(self) -> None:
        """From now on what is asked for waits."""
        self._holds = True

    def let_go(self) -> None:
        """It waits no longer, nor does what is asked for from now on."""
        self._holds = False
        held, self.held = self.held, []
        for waiting in held:
            waiting.callback(None)
