"""Reads the record of purged messages: how many, when, in which room and why. Also removes words of
purged messages that remain in SQLite's search index, at most a day after the purge."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from federation.protocol.errors import InvalidParam
from storage.retention.purging import DAY_MS, PurgeCause, PurgingStore
from storage.search.search import SearchStore

RETENTION_MS: Final = 2 * 365 * DAY_MS
"""The retention period of the log."""
_CAUSES: Final = frozenset(cause.value for cause in PurgeCause)


class PurgeLog:
    """Reads and cleans up the record."""

    def __init__(
        self, *, store: PurgingStore, texts: SearchStore, now_ms: Callable[[], int]
    ) -> None:
        self._store = store
        self._texts = texts
        self._now_ms = now_ms

    async def get_page(self, from_: str | None, limit: int) -> dict[str, Any]:
        """Return a page of the record by days and rooms, the latest first. Raises InvalidParam."""
        rows = await self._store.get_days(None if from_ is None else self._parse(from_), limit)
        response: dict[str, Any] = {
            "purged": [
                {
                    "day": datetime.fromtimestamp(row.day * DAY_MS / 1000, UTC).date().isoformat(),
                    "room_id": row.room_id,
                    "cause": row.cause,
                    "messages": row.messages,
                }
                for row in rows
            ]
        }
        if len(rows) >= limit:
            last = rows[-1]
            response["next_token"] = f"{last.day}_{last.room_nid}_{last.cause}"
        return response

    async def do_remove_old(self, limit: int) -> int:
        """Delete up to `limit` old rows of the record, and return their number."""
        return await self._store.remove_days(self._now_ms() - RETENTION_MS, limit)

    async def do_clean_index(self, limit: int) -> int:
        """Remove words of purged messages from the index, about `limit` pages of it. Return `limit`
        while there are more, else 0."""
        return limit if await self._texts.merge_deleted(limit) else 0

    def _parse(self, token: str) -> tuple[int, int, str]:
        day, _, rest = token.partition("_")
        room_nid, _, cause = rest.partition("_")
        are_numbers = all(
            part.isascii() and part.isdigit() and len(part) < 16 for part in (day, room_nid)
        )
        if not are_numbers or cause not in _CAUSES or int(day) > self._now_ms() // DAY_MS:
            raise InvalidParam("`from` is not a token that this endpoint returned")
        return int(day), int(room_nid), cause
