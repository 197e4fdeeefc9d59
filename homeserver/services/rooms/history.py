"""Connects readers of a room's history to the source that fetches it from other servers.

The source is built after the readers. Without federation there is none.
"""

from typing import Protocol

from federation.rooms.history.backfill import Gap
from federation.rooms.snapshot import RoomSnapshot


class HistorySource(Protocol):
    """Fetches history that other servers have and this one does not."""

    async def fill(self, snapshot: RoomSnapshot, lowest: int, highest: int) -> Gap:
        """Fetch some of the missing events between two depths."""


class RoomHistory:
    """Passes requests to the connected source, if any."""

    def __init__(self) -> None:
        self._source: HistorySource | None = None

    def connect(self, source: HistorySource) -> None:
        """Use this source from now on."""
        self._source = source

    async def fill(self, snapshot: RoomSnapshot, lowest: int, highest: int) -> Gap:
        """As `HistorySource.fill`; nothing is missing if there is no source."""
        return (
            Gap.NONE if self._source is None else await self._source.fill(snapshot, lowest, highest)
        )
