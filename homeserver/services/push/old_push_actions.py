"""Deletes push actions of events that users read long ago."""

from collections.abc import Callable
from typing import Final

from storage.push.old_push_actions import FIRST, OldPushActionStore

RETENTION_DAYS: Final = 180
"""The minimum age of push actions of read events in the list of notifications before they are
deleted.
"""
DAY_MS: Final = 24 * 3600 * 1000


class PushActionCleanup:
    """Walks through the stored push actions, again and again."""

    def __init__(self, *, store: OldPushActionStore, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms
        self._checked_upto = FIRST

    async def do_delete(self, limit: int) -> int:
        """Examine up to `limit` rooms of users. Return how many were examined: fewer at the end of
        a walk."""
        last, number = await self._store.remove(
            self._checked_upto, self._now_ms() - RETENTION_DAYS * DAY_MS, limit
        )
        self._checked_upto = FIRST if last is None else last
        return number
