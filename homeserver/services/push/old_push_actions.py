"""Deletes old push action rows, so that the table stays small.

A row is deleted if its event is older than `RETENTION_DAYS` and the user has read the room up to
the event. Only unthreaded receipts count for this.
"""

from collections.abc import Callable
from typing import Final

from storage.push.old_push_actions import FIRST, OldPushActionStore

RETENTION_DAYS: Final = 180
"""The minimum age of an event in days before its rows are deleted. Until then the list of
notifications has it.
"""
DAY_MS: Final = 24 * 3600 * 1000


class PushActionCleanup:
    """Goes through the stored push actions, again and again."""

    def __init__(self, *, store: OldPushActionStore, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms
        self._checked_upto = FIRST

    async def do_delete(self, limit: int) -> int:
        """Examine up to `limit` rooms of users. Return how many were examined: fewer at the end of
        a pass."""
        last, number = await self._store.remove(
            self._checked_upto, self._now_ms() - RETENTION_DAYS * DAY_MS, limit
        )
        self._checked_upto = FIRST if last is None else last
        return number
