"""Replaces the threads that hash passwords."""

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class InlineThreads:
    """Runs work inline and counts it, or holds it until `let_go`. `meanwhile` is called after the
    next piece of work."""

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
        """Hold all further work."""
        self._holds = True

    def let_go(self) -> None:
        """Run the held work, and run further work inline."""
        self._holds = False
        held, self.held = self.held, []
        for waiting in held:
            waiting.callback(None)
