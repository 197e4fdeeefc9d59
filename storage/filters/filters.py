"""Filters that clients uploaded. A filter never changes. If the same filter is uploaded again, it
keeps its ID.

Laws:
- The number and the total size of a user's filters are limited. If a new filter exceeds a limit,
  filters that were never used are deleted first, except the few that were uploaded last, because
  clients are about to use them. If that is not enough, the least recently used filters are deleted.
  So filters in use remain, however many others are uploaded.
- IDs increase and are not reused, so that an old ID never means another filter.
"""

from hashlib import sha256

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MAX_FILTERS = 1000
MAX_CHARACTERS = 1024 * 1024
"""The most characters of JSON, of all filters of one user."""
PROTECTED_UNUSED = 4
"""The number of most recently uploaded unused filters that are kept before all others."""


class FilterStore:
    """Stores filters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_filter(self, user_id: str, filter_id: int) -> tuple[str, int] | None:
        """Return the definition, as canonical JSON, and the recorded time of the last use in ms; 0
        if it was never used."""

        def read(txn: Transaction) -> tuple[str, int] | None:
            sql = (
                "SELECT definition, last_used_ts * is_used FROM filters"
                " WHERE user_id = ? AND filter_id = ?"
            )
            row = txn.query_one(sql, (user_id, filter_id))
            return None if row is None else (str(row[0]), int(row[1]))

        return await self._database.read_quickly("get_filter", read)

    async def get_filter_id(self, user_id: str, definition: str) -> tuple[int, int] | None:
        """Return the ID of this filter, and when it was last uploaded or used, in ms."""
        return await self._database.read_quickly("get_filter_id", _select_id, user_id, definition)

    async def add_filter(self, user_id: str, definition: str, now_ms: int) -> int:
        """Add a filter unless it exists. Return its ID; the first is 0. Counts as uploaded now."""
        return await self._database.write("add_filter", _add_filter, user_id, definition, now_ms)

    async def record_use(self, user_id: str, filter_id: int, now_ms: int) -> None:
        """Record that a filter was used now."""
        await self._database.write("record_filter_use", _record_use, user_id, filter_id, now_ms)


def _add_filter(txn: WriteTransaction, user_id: str, definition: str, now_ms: int) -> int:
    found = _select_id(txn, user_id, definition)
    if found is not None:
        if found[1] < now_ms:
            sql = "UPDATE filters SET last_used_ts = ? WHERE user_id = ? AND filter_id = ?"
            txn.execute(sql, (now_ms, user_id, found[0]))
        return found[0]
    rows = txn.query(
        "SELECT filter_id, length(definition), is_used FROM filters WHERE user_id = ?"
        " ORDER BY last_used_ts DESC, filter_id DESC",
        (user_id,),
    )
    number = max((filter_id for filter_id, *_ in rows), default=-1) + 1
    txn.execute(
        "INSERT INTO filters (user_id, filter_id, definition, digest, last_used_ts, is_used)"
        " VALUES (?, ?, ?, ?, ?, 0)",
        (user_id, number, definition, _digest(definition), now_ms),
    )
    used = [row for row in rows if row[2]]
    unused = [row for row in rows if not row[2]]
    protected = PROTECTED_UNUSED - 1  # with the new one
    count, size = 1, len(definition)
    excess: list[int] = []
    for filter_id, length, _ in (*unused[:protected], *used, *unused[protected:]):
        if excess or count == MAX_FILTERS or size + length > MAX_CHARACTERS:
            excess.append(filter_id)
        count, size = count + 1, size + length
    txn.execute_many(
        "DELETE FROM filters WHERE user_id = ? AND filter_id = ?",
        [(user_id, each) for each in excess],
    )
    return number


def _record_use(txn: WriteTransaction, user_id: str, filter_id: int, now_ms: int) -> None:
    txn.execute(
        "UPDATE filters SET last_used_ts = CASE WHEN last_used_ts < ? THEN ? ELSE last_used_ts END,"
        " is_used = 1"
        " WHERE user_id = ? AND filter_id = ? AND (last_used_ts < ? OR is_used = 0)",
        (now_ms, now_ms, user_id, filter_id, now_ms),
    )


def _select_id(txn: Transaction, user_id: str, definition: str) -> tuple[int, int] | None:
    row = txn.query_one(
        "SELECT filter_id, last_used_ts FROM filters WHERE user_id = ? AND digest = ?",
        (user_id, _digest(definition)),
    )
    return None if row is None else (int(row[0]), int(row[1]))


def _digest(definition: str) -> bytes:
    return sha256(definition.encode()).digest()
