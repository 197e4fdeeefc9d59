"""The past of rooms that other servers have and this one does not, for whoever reads back.

A registry of one: who fetches is made after those who read, and there is nobody where this server
talks with no other.
"""

from typing import Protocol

from federation.rooms.history.backfill import Gap
from federation.rooms.snapshot import RoomSnapshot


class HistorySource(Protocol):
    """Who can fetch it."""

    async def fill(self, snapshot: RoomSnapshot, lowest: int, highest: int) -> Gap:
        """Fetch some of what is missing between two depths."""


class RoomHistory:
    """Asks the source that was connected, if any."""

    def __init__(self) -> None:
        self._source: HistorySource | None = None

    def connect(self, source: HistorySource) -> None:
        """Ask that one from now on."""
        self._source = source

    async def fill(self, snapshot: RoomSnapshot, lowest: int, highest: int) -> Gap:
        """As the source."""
        return (
            Gap.NONE if self._source is None else await self._source.fill(snapshot, lowest, highest)
        )
