"""Whose file is scanned next: by turns among those whose files wait, so that nobody's files keep those of others from being scanned."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from federation.protocol.errors import NotYetUploaded
from federation.slots import Slots

MOST_WAITING: Final = 1000
"""Scans that wait for their turn in memory; what comes beyond them is left to the job, or has to be asked for again."""
MOST_OF_ONE: Final = 50
"""Of these, for one and the same."""


class ScanTurns:
    """So many scans at the same time; one may hold all of them but one."""

    def __init__(self, at_once: int) -> None:
        self._slots: Slots[str] = Slots(at_once, max(1, at_once - 1))
        self._waiting = 0

    @asynccontextmanager
    async def turn(self, whose: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the context lasts. `whose`: on whose behalf. Raises NotYetUploaded."""
        if self._waiting >= MOST_WAITING or self._slots.count_waiting(whose) >= MOST_OF_ONE:
            raise NotYetUploaded("Many files wait to be scanned: try again in a while")
        self._waiting += 1
        try:
            await self._slots.acquire(whose)
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release(whose)
