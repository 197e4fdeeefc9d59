"""Lists of files, as their owners and administrators see them: by user, by room, and how much there
is."""

from collections.abc import Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction
from storage.media.content_uris import MediaAddress
from storage.media.media import COLUMNS, MediaRow, make_row
from storage.media.references import Role, Setting
from storage.media.remote_media import COPY_COLUMNS, RemoteMediaRow, make_copy

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


class Order(msgspec.Struct, frozen=True):
    """In which order. `by` is one of `ORDERS`."""

    by: str
    descending: bool


class Wished(msgspec.Struct, frozen=True, kw_only=True):
    """Which files. What is None is not looked at."""

    from_ms: int | None = None
    """Those that came then (milliseconds since 1970) or later."""
    until_ms: int | None = None
    """Those that came before then."""
    larger_than: int | None = None
    """In bytes."""
    held: bool | None = None
    """Those that are held back, or those that are not."""
    protected: bool | None = None
    """Those that are protected, or those that are not. Copies of other servers' files are never."""
    user_id: str | None = None
    """Those that this user has uploaded; no copies."""
    origin: str | None = None
    """Copies of this server's files."""
    room_id: str | None = None
    """Those that events of this room show; pictures of members are not among them."""
    only_there: bool = False
    """Of these those that neither another room shows, nor a profile, nor account data."""


class Page(msgspec.Struct, frozen=True):
    """Some uploads of a user, and how many there are of them, and how many bytes, in all."""

    rows: Sequence[MediaRow]
    count: int
    size: int


class MediaListStore:
    """Reads lists of files. `own`: this server's name."""

    def __init__(self, database: Database, own: str) -> None:
        self._database = database
        self._own = own

    async def get_uploads(self, user_id: str, order: Order, start: int, limit: int) -> Page:
        """What a user has uploaded; reservations are no files."""
        return await self._database.read(
            "get_uploads_of_user", _select_uploads, user_id, order, start, limit
        )

    async def get_in_room(
        self, room_id: str, *, only_there: bool = False
    ) -> Sequence[MediaAddress]:
        """The files that events of a room show; pictures of members are not among them.

        `only_there`: those that neither another room shows, nor a profile, nor account data.
        """
        return await self._database.read("get_media_in_room", _select_in_room, room_id, only_there)

    async def find_uploads(
        self, wished: Wished, after: MediaAddress, limit: int
    ) -> Sequence[MediaRow]:
        """Files of this server's users, in the order of their ids, the first after this one.
        Without a user or a room this looks at every file."""
        where, args = self._wish(wished, own=True)
        sql = f"SELECT {COLUMNS} FROM media WHERE hash IS NOT NULL AND user_id <> ''{where} AND media_id > ? ORDER BY media_id LIMIT ?"
        rows = await self._database.read(
            "find_uploads", lambda txn: txn.query(sql, (*args, after.media_id, limit))
        )
        return [make_row(row) for row in rows]

    async def find_copies(
        self, wished: Wished, after: MediaAddress, limit: int
    ) -> Sequence[RemoteMediaRow]:
        """Copies of other servers' files, in the order of their addresses, the first after this
        one. Without a room this looks at every copy, or every one of a server."""
        where, args = self._wish(wished, own=False)
        sql = f"SELECT {COPY_COLUMNS} FROM remote_media WHERE (origin, media_id) > (?, ?){where} ORDER BY origin, media_id LIMIT ?"
        rows = await self._database.read(
            "find_media_copies", lambda txn: txn.query(sql, (*after, *args, limit))
        )
        return [make_copy(row) for row in rows]

    def _wish(self, wished: Wished, *, own: bool) -> tuple[str, list[str | int]]:
        """Further conditions, and their arguments."""
        conditions: list[tuple[str, str | int | None]] = [
            ("created_ts >= ?", wished.from_ms),
            ("created_ts < ?", wished.until_ms),
            ("size > ?", wished.larger_than),
            ("quarantined = ?", None if wished.held is None else int(wished.held)),
        ]
        elsewhere = _NOT_ELSEWHERE if wished.only_there else ""
        if own:
            in_room = f"media_id IN (SELECT k.media_id{_IN_ROOM}{elsewhere} AND k.origin = ?)"
            conditions += [
                ("protected = ?", None if wished.protected is None else int(wished.protected)),
                ("user_id = ?", wished.user_id),
            ]
        else:
            in_room = f"(origin, media_id) IN (SELECT k.origin, k.media_id{_IN_ROOM}{elsewhere} AND k.origin <> ?)"
            conditions.append(("origin = ?", wished.origin))
        given = [(sql, arg) for sql, arg in conditions if arg is not None]
        where, args = "".join(f" AND {sql}" for sql, _ in given), [arg for _, arg in given]
        if wished.room_id is None:
            return where, args
        return f"{where} AND {in_room}", [*args, wished.room_id, self._own]

    async def get_old_uploads(
        self, before_ms: int, larger_than: int, after: str, limit: int, *, keep_profiles: bool
    ) -> Sequence[str]:
        """Ids of files that nobody has read since, by their order after one; neither held back nor
        protected, nor of previews.

        `keep_profiles`: nor pictures of users, members or rooms.
        """
        kept = (
            " AND NOT EXISTS (SELECT 1 FROM known_media AS k WHERE k.origin = ? AND k.media_id = m.media_id AND ("
            f"EXISTS (SELECT 1 FROM media_in_settings AS s WHERE s.media_nid = k.media_nid AND s.kind = {int(Setting.PROFILE)})"
            " OR EXISTS (SELECT 1 FROM media_in_events AS e WHERE e.media_nid = k.media_nid"
            f" AND e.role IN ({int(Role.MEMBER)}, {int(Role.ROOM)}))))"
        )
        sql = (
            "SELECT m.media_id FROM media AS m WHERE m.hash IS NOT NULL AND m.user_id <> '' AND m.quarantined = 0 AND m.protected = 0"
            f" AND m.last_access_ts < ? AND m.size > ? AND m.media_id > ?{kept if keep_profiles else ''}"
            " ORDER BY m.media_id LIMIT ?"
        )
        args = (before_ms, larger_than, after, *((self._own,) if keep_profiles else ()), limit)
        rows = await self._database.read("get_old_uploads", lambda txn: txn.query(sql, args))
        return [media_id for (media_id,) in rows]

    async def get_old_copies(
        self, before_ms: int, after: MediaAddress, limit: int
    ) -> Sequence[MediaAddress]:
        """Copies of other servers' files that nobody has read since, by their order after one; not
        those held back."""
        sql = (
            "SELECT origin, media_id FROM remote_media WHERE quarantined = 0 AND last_access_ts < ?"
            " AND (origin, media_id) > (?, ?) ORDER BY origin, media_id LIMIT ?"
        )
        rows = await self._database.read(
            "get_old_copies", lambda txn: txn.query(sql, (before_ms, *after, limit))
        )
        return [MediaAddress(origin, media_id) for origin, media_id in rows]


_IN_ROOM: Final = (
    " FROM rooms AS r JOIN media_in_events AS e ON e.room_nid = r.room_nid JOIN known_media AS k ON k.media_nid = e.media_nid"
    f" WHERE r.room_id = ? AND e.role <> {int(Role.MEMBER)}"
)
_NOT_ELSEWHERE: Final = (
    " AND NOT EXISTS (SELECT 1 FROM media_in_events AS o WHERE o.media_nid = e.media_nid AND o.room_nid <> e.room_nid)"
    " AND NOT EXISTS (SELECT 1 FROM media_in_settings AS s WHERE s.media_nid = e.media_nid)"
)


def _select_uploads(txn: Transaction, user_id: str, order: Order, start: int, limit: int) -> Page:
    totals = txn.query_one(
        "SELECT COUNT(*), SUM(size) FROM media WHERE user_id = ? AND hash IS NOT NULL", (user_id,)
    )
    assert totals is not None
    direction = "DESC" if order.descending else "ASC"
    # PostgreSQL would have rows without a value last, SQLite first
    column = (
        f"COALESCE({_ORDERS[order.by]}, '')"
        if order.by in ("upload_name", "quarantined_by")
        else _ORDERS[order.by]
    )
    rows = txn.query(
        f"SELECT {COLUMNS} FROM media WHERE user_id = ? AND hash IS NOT NULL"
        f" ORDER BY {column} {direction}, media_id {direction} LIMIT ? OFFSET ?",
        (user_id, limit, start),
    )
    return Page([make_row(row) for row in rows], int(totals[0]), int(totals[1] or 0))


def _select_in_room(txn: Transaction, room_id: str, only_there: bool) -> Sequence[MediaAddress]:
    elsewhere = _NOT_ELSEWHERE if only_there else ""
    rows = txn.query(
        f"SELECT DISTINCT k.origin, k.media_id{_IN_ROOM}{elsewhere} ORDER BY k.origin, k.media_id",
        (room_id,),
    )
    return [MediaAddress(origin, media_id) for origin, media_id in rows]
