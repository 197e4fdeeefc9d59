"""The interface by which `reading.py` fetches history that this server lacks."""

from typing import Protocol

from federation.rooms.history.backfill import Gap
from federation.rooms.snapshot import RoomSnapshot


class HistorySource(Protocol):
    """Fetches history that other servers have and this one does not."""

    async def fill(self, snapshot: RoomSnapshot, lowest: int, highest: int) -> Gap:
        """Fetch some of the missing events between two depths."""
