"""Filters that clients uploaded. A filter never changes; the same filter uploaded again keeps its number.

Laws:
- Of each user there are so many, of so many characters in all: for a new one those go that nobody has used for longest.
- Numbers rise and are not given out again, so that an old one does not mean another filter.
"""

from hashlib import sha256

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction

MOST_FILTERS = 1000
LARGEST_FILTERS = 1024 * 1024
"""In characters of JSON, all of one user."""


class FilterStore:
    """The table of filters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_filter(self, user_id: str, filter_id: int) -> tuple[str, int] | None:
        """The definition, as canonical JSON, and the day (counted from 1970) on which it was last used, as far as that is noted."""

        def read(txn: Transaction) -> tuple[str, int] | None:
            sql = "SELECT definition, used_day FROM filters WHERE user_id = ? AND filter_id = ?"
            row = txn.query_one(sql, (user_id, filter_id))
            return None if row is None else (str(row[0]), int(row[1]))

        return await self._database.read_quickly("get_filter", read)

    async def get_filter_id(self, user_id: str, definition: str) -> tuple[int, int] | None:
        """The number under which the user has this filter, and the day on which it was last used."""
        return await self._database.read_quickly("get_filter_id", _select_id, user_id, definition)

    async def add_filter(self, user_id: str, definition: str, today: int) -> int:
        """Add it unless it is there; its number, from 0 on. It counts as used today."""
        return await self._database.write("add_filter", _add_filter, user_id, definition, today)

    async def note_used(self, user_id: str, filter_id: int, today: int) -> None:
        """Note that it was used today."""
        await self._database.write("note_used_filter", _note_used, user_id, filter_id, today)


def _add_filter(txn: WriteTransaction, user_id: str, definition: str, today: int) -> int:
    found = _select_id(txn, user_id, definition)
    if found is not None:
        _note_used(txn, user_id, found[0], today)
        return found[0]
    rows = txn.query(
        "SELECT filter_id, length(definition) FROM filters WHERE user_id = ? ORDER BY used_day DESC, filter_id DESC",
        (user_id,),
    )
    number = max((filter_id for filter_id, _ in rows), default=-1) + 1
    txn.execute(
        "INSERT INTO filters (user_id, filter_id, definition, digest, used_day) VALUES (?, ?, ?, ?, ?)",
        (user_id, number, definition, _digest(definition), today),
    )
    count, size = 1, len(definition)
    too_many: list[int] = []
    for filter_id, length in rows:
        if too_many or count == MOST_FILTERS or size + length > LARGEST_FILTERS:
            too_many.append(filter_id)
        count, size = count + 1, size + length
    txn.execute_many("DELETE FROM filters WHERE user_id = ? AND filter_id = ?", [(user_id, each) for each in too_many])
    return number


def _note_used(txn: WriteTransaction, user_id: str, filter_id: int, today: int) -> None:
    txn.execute(
        "UPDATE filters SET used_day = ? WHERE user_id = ? AND filter_id = ? AND used_day < ?",
        (today, user_id, filter_id, today),
    )


def _select_id(txn: Transaction, user_id: str, definition: str) -> tuple[int, int] | None:
    row = txn.query_one(
        "SELECT filter_id, used_day FROM filters WHERE user_id = ? AND digest = ?", (user_id, _digest(definition))
    )
    return None if row is None else (int(row[0]), int(row[1]))


def _digest(definition: str) -> bytes:
    return sha256(definition.encode()).digest()
