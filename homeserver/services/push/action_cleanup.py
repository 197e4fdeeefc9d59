"""Forgets what events were to users who read them long ago."""

from collections.abc import Callable
from typing import Final

from storage.push.old_push_actions import FIRST, OldOutcomeStore

KEPT_DAYS: Final = 180
"""How far back the list of notifications goes at least, of what was read."""
DAY_MS: Final = 24 * 3600 * 1000


class OldOutcomes:
    """Walks through what is kept, again and again."""

    def __init__(self, store: OldOutcomeStore, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms
        self._looked_upto = FIRST

    async def do_forget(self, limit: int) -> int:
        """Look at so many rooms of users; at how many it was, fewer at the end of a walk."""
        last, number = await self._store.remove(
            self._looked_upto, self._now_ms() - KEPT_DAYS * DAY_MS, limit
        )
        self._looked_upto = FIRST if last is None else last
        return number
