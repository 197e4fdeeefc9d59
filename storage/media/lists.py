"""Lists of files for their owners and administrators: by user, by room, by age."""

from collections.abc import Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction
from storage.media.content_uris import ContentURI
from storage.media.media import COLUMNS, MediaRow, make_row
from storage.media.references import ReferenceRole, SettingKind
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
"""The columns by which uploads can be ordered."""


class MediaOrder(msgspec.Struct, frozen=True):
    """A sort order. `by` is one of `ORDERS`."""

    by: str
    descending: bool


class MediaFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Selects files. A field that is None does not restrict the selection."""

    from_ms: int | None = None
    """Created at or after this time (ms since 1970)."""
    until_ms: int | None = None
    """Created before this time."""
    larger_than: int | None = None
    """Larger than this, in bytes."""
    quarantined: bool | None = None
    """Quarantined ones, or the others."""
    protected: bool | None = None
    """Protected ones, or the others. Copies of remote files are never protected."""
    user_id: str | None = None
    """Uploads of this user; no copies."""
    origin: str | None = None
    """Copies of this server's files."""
    room_id: str | None = None
    """Files in events of this room, without avatars of its members."""
    only_in_room: bool = False
    """Of these, files that no other room, profile or account data refers to."""


class UploadPage(msgspec.Struct, frozen=True):
    """A page of a user's uploads, with the number and bytes of all of them."""

    rows: Sequence[MediaRow]
    count: int
    size: int


class MediaListStore:
    """Reads lists of files. `own`: this server's name."""

    def __init__(self, *, database: Database, own: str) -> None:
        self._database = database
        self._own = own

    async def get_uploads(
        self, user_id: str, order: MediaOrder, start: int, limit: int
    ) -> UploadPage:
        """Return a page of a user's uploads, without reservations."""
        return await self._database.read(
            "get_uploads_of_user", _select_uploads, user_id, order, start, limit
        )

    async def get_in_room(
        self, room_id: str, *, only_in_room: bool = False
    ) -> Sequence[ContentURI]:
        """Return the files in events of a room, without avatars of its members.

        `only_in_room`: those that no other room, profile or account data refers to.
        """
        return await self._database.read(
            "get_media_in_room", _select_in_room, room_id, only_in_room
        )

    async def find_uploads(
        self, filter: MediaFilter, after: ContentURI, limit: int
    ) -> Sequence[MediaRow]:
        """Return files of local users in the order of their IDs, after `after`. Without a user or a
        room this reads all files."""
        where, args = self._conditions(filter, own=True)
        sql = (
            f"SELECT {COLUMNS} FROM media WHERE hash IS NOT NULL AND user_id <> ''{where}"
            " AND media_id > ? ORDER BY media_id LIMIT ?"
        )
        rows = await self._database.read(
            "find_uploads", lambda txn: txn.query(sql, (*args, after.media_id, limit))
        )
        return [make_row(row) for row in rows]

    async def find_copies(
        self, filter: MediaFilter, after: ContentURI, limit: int
    ) -> Sequence[RemoteMediaRow]:
        """Return copies of remote files in the order of their content URIs, after `after`. Without
        a room this reads all copies, or all of one server."""
        where, args = self._conditions(filter, own=False)
        sql = (
            f"SELECT {COPY_COLUMNS} FROM remote_media WHERE (origin, media_id) > (?, ?){where}"
            " ORDER BY origin, media_id LIMIT ?"
        )
        rows = await self._database.read(
            "find_media_copies", lambda txn: txn.query(sql, (*after, *args, limit))
        )
        return [make_copy(row) for row in rows]

    def _conditions(self, filter: MediaFilter, *, own: bool) -> tuple[str, list[str | int]]:
        """Return the SQL conditions of a filter, and their arguments."""
        conditions: list[tuple[str, str | int | None]] = [
            ("created_ts >= ?", filter.from_ms),
            ("created_ts < ?", filter.until_ms),
            ("size > ?", filter.larger_than),
            ("quarantined = ?", None if filter.quarantined is None else int(filter.quarantined)),
        ]
        condition = _ONLY_IN_ROOM if filter.only_in_room else ""
        if own:
            in_room = f"media_id IN (SELECT k.media_id{_IN_ROOM}{condition} AND k.origin = ?)"
            conditions += [
                ("protected = ?", None if filter.protected is None else int(filter.protected)),
                ("user_id = ?", filter.user_id),
            ]
        else:
            in_room = (
                f"(origin, media_id) IN (SELECT k.origin, k.media_id{_IN_ROOM}{condition}"
                " AND k.origin <> ?)"
            )
            conditions.append(("origin = ?", filter.origin))
        used = [(sql, arg) for sql, arg in conditions if arg is not None]
        where, args = "".join(f" AND {sql}" for sql, _ in used), [arg for _, arg in used]
        if filter.room_id is None:
            return where, args
        return f"{where} AND {in_room}", [*args, filter.room_id, self._own]

    async def get_old_uploads(
        self, before_ms: int, larger_than: int, after: str, limit: int, *, keep_profiles: bool
    ) -> Sequence[str]:
        """Return the IDs of files that nobody has read since, in order after `after`: neither
        quarantined nor protected, nor pictures of URL previews.

        `keep_profiles`: nor avatars of users, members or rooms.
        """
        not_an_avatar = (
            " AND NOT EXISTS (SELECT 1 FROM tracked_media AS k"
            " WHERE k.origin = ? AND k.media_id = m.media_id AND ("
            "EXISTS (SELECT 1 FROM media_setting_references AS s"
            f" WHERE s.media_nid = k.media_nid AND s.kind = {int(SettingKind.PROFILE)})"
            " OR EXISTS (SELECT 1 FROM media_event_references AS e WHERE e.media_nid = k.media_nid"
            f" AND e.role IN ({int(ReferenceRole.MEMBER)}, {int(ReferenceRole.ROOM)}))))"
        )
        sql = (
            "SELECT m.media_id FROM media AS m"
            " WHERE m.hash IS NOT NULL AND m.user_id <> '' AND m.quarantined = 0"
            " AND m.protected = 0"
            " AND m.last_access_ts < ? AND m.size > ?"
            f" AND m.media_id > ?{not_an_avatar if keep_profiles else ''}"
            " ORDER BY m.media_id LIMIT ?"
        )
        args = (before_ms, larger_than, after, *((self._own,) if keep_profiles else ()), limit)
        rows = await self._database.read("get_old_uploads", lambda txn: txn.query(sql, args))
        return [media_id for (media_id,) in rows]

    async def get_old_copies(
        self, before_ms: int, after: ContentURI, limit: int
    ) -> Sequence[ContentURI]:
        """Return copies of remote files that nobody has read since, in order after `after`; no
        quarantined ones."""
        sql = (
            "SELECT origin, media_id FROM remote_media WHERE quarantined = 0 AND last_access_ts < ?"
            " AND (origin, media_id) > (?, ?) ORDER BY origin, media_id LIMIT ?"
        )
        rows = await self._database.read(
            "get_old_copies", lambda txn: txn.query(sql, (before_ms, *after, limit))
        )
        return [ContentURI(origin, media_id) for origin, media_id in rows]


_IN_ROOM: Final = (
    " FROM rooms AS r JOIN media_event_references AS e ON e.room_nid = r.room_nid"
    " JOIN tracked_media AS k ON k.media_nid = e.media_nid"
    f" WHERE r.room_id = ? AND e.role <> {int(ReferenceRole.MEMBER)}"
)
_ONLY_IN_ROOM: Final = (
    " AND NOT EXISTS (SELECT 1 FROM media_event_references AS o"
    " WHERE o.media_nid = e.media_nid AND o.room_nid <> e.room_nid)"
    " AND NOT EXISTS (SELECT 1 FROM media_setting_references AS s WHERE s.media_nid = e.media_nid)"
)


def _select_uploads(
    txn: Transaction, user_id: str, order: MediaOrder, start: int, limit: int
) -> UploadPage:
    totals = txn.query_one(
        "SELECT COUNT(*), SUM(size) FROM media WHERE user_id = ? AND hash IS NOT NULL", (user_id,)
    )
    assert totals is not None
    direction = "DESC" if order.descending else "ASC"
    # PostgreSQL sorts NULL last, SQLite first
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
    return UploadPage([make_row(row) for row in rows], int(totals[0]), int(totals[1] or 0))


def _select_in_room(txn: Transaction, room_id: str, only_in_room: bool) -> Sequence[ContentURI]:
    condition = _ONLY_IN_ROOM if only_in_room else ""
    rows = txn.query(
        f"SELECT DISTINCT k.origin, k.media_id{_IN_ROOM}{condition} ORDER BY k.origin, k.media_id",
        (room_id,),
    )
    return [ContentURI(origin, media_id) for origin, media_id in rows]
