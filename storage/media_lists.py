"""Lists of files, as their owners and administrators see them: by user, by room, and how much there is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from storage.database import Database
from storage.media import COLUMNS, MediaRow, make_row
from storage.media_addresses import MediaAddress
from storage.media_references import Role
from storage.transaction import Transaction

_ORDERS: Final = {
    "media_id": "media_id",
    "upload_name": "name",
    "created_ts": "created_ts",
    "last_access_ts": "last_access_ts",
    "media_length": "size",
    "media_type": "type",
    "quarantined_by": "quarantined_by",
    "safe_from_quarantine": "protected",
}
ORDERS: Final = frozenset(_ORDERS)
"""By what uploads can be ordered."""


@dataclass(frozen=True, slots=True)
class Order:
    """In which order. `by` is one of `ORDERS`."""

    by: str
    descending: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Some uploads of a user, and how many there are of them, and how many bytes, in all."""

    rows: Sequence[MediaRow]
    count: int
    size: int


class MediaListStore:
    """Reads lists of files."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_uploads(self, user_id: str, order: Order, start: int, limit: int) -> Page:
        """What a user has uploaded; reservations are no files."""
        return await self._database.read("get_uploads_of_user", _select_uploads, user_id, order, start, limit)

    async def get_in_room(self, room_id: str) -> Sequence[MediaAddress]:
        """The files that events of a room show; pictures of members are not among them."""
        return await self._database.read("get_media_in_room", _select_in_room, room_id)


def _select_uploads(txn: Transaction, user_id: str, order: Order, start: int, limit: int) -> Page:
    totals = txn.query_one("SELECT COUNT(*), SUM(size) FROM media WHERE user_id = ? AND hash IS NOT NULL", (user_id,))
    assert totals is not None
    direction = "DESC" if order.descending else "ASC"
    # PostgreSQL would have rows without a value last, SQLite first
    column = (
        f"COALESCE({_ORDERS[order.by]}, '')" if order.by in ("upload_name", "quarantined_by") else _ORDERS[order.by]
    )
    rows = txn.query(
        f"SELECT {COLUMNS} FROM media WHERE user_id = ? AND hash IS NOT NULL"
        f" ORDER BY {column} {direction}, media_id {direction} LIMIT ? OFFSET ?",
        (user_id, limit, start),
    )
    return Page([make_row(row) for row in rows], int(totals[0]), int(totals[1] or 0))


def _select_in_room(txn: Transaction, room_id: str) -> Sequence[MediaAddress]:
    rows = txn.query(
        "SELECT DISTINCT k.origin, k.media_id FROM rooms AS r JOIN media_in_events AS e ON e.room_nid = r.room_nid"
        " JOIN known_media AS k ON k.media_nid = e.media_nid"
        f" WHERE r.room_id = ? AND e.role <> {int(Role.MEMBER)} ORDER BY k.origin, k.media_id",
        (room_id,),
    )
    return [MediaAddress(origin, media_id) for origin, media_id in rows]
