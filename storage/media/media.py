"""Rows of uploaded files: uploader, type and content hash.

An id may be reserved first and get its content later, or be stored with its content in one write.
An id that has a content never gets another one.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction


class MediaContent(msgspec.Struct, frozen=True):
    """The content of a file. `hash`: SHA-256; `size` in bytes."""

    hash: bytes
    size: int
    type: str
    name: str | None


class MediaRow(msgspec.Struct, frozen=True):
    """A file, or an id that is reserved for one. Times are milliseconds since 1970."""

    media_id: str
    user_id: str
    content: MediaContent | None
    """None while the ID is only reserved."""
    created_ts: int
    """When the content arrived; for a reservation, when it was made."""
    expires_ts: int | None
    """When the reservation ends."""
    last_access_ts: int
    authenticated: bool
    """Served only to authenticated requests."""
    quarantined: bool = False
    protected: bool = False
    quarantined_by: str | None = None
    """The user ID that quarantined it, or `system`."""


COLUMNS: Final = (
    "media_id, user_id, hash, type, size, name, created_ts, expires_ts, last_access_ts,"
    " authenticated, quarantined, "
    "protected, quarantined_by"
)


class MediaStore:
    """Reads and writes the table `media`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_media(self, media_ids: Iterable[str]) -> Mapping[str, MediaRow]:
        """Return those of the files that exist."""
        return await self._database.read_quickly("get_media", _select, tuple(media_ids))

    async def get_used_hashes(self, hashes: Iterable[bytes]) -> Set[bytes]:
        """Return those of the hashes that a file or a copy of a remote file has."""
        return await self._database.read("get_used_media_hashes", select_used_hashes, tuple(hashes))

    async def set_accessed(self, media_id: str, now_ms: int) -> None:
        """Record a read of the file."""
        await self._database.write("set_media_accessed", _set_accessed, media_id, now_ms)

    async def remove_expired(self, now_ms: int, limit: int) -> int:
        """Delete at most `limit` expired reservations. Return how many."""
        return await self._database.write("remove_expired_media", _remove_expired, now_ms, limit)

    def count_reserved(self, txn: Transaction, user_id: str, now_ms: int) -> int:
        """Count the open reservations of a user."""
        row = txn.query_one(
            "SELECT COUNT(*) FROM media WHERE expires_ts IS NOT NULL AND expires_ts > ?"
            " AND user_id = ?",
            (now_ms, user_id),
        )
        return 0 if row is None else int(row[0])

    def sum_sizes(self, txn: Transaction, user_id: str, since_ms: Sequence[int]) -> Sequence[int]:
        """Return the bytes of the user's files since each of these times. An index covers the
        query."""
        sums = ", ".join(["SUM(CASE WHEN created_ts > ? THEN size ELSE 0 END)"] * len(since_ms))
        sql = f"SELECT {sums} FROM media WHERE user_id = ? AND created_ts > ?"
        row = txn.query_one(sql, (*since_ms, user_id, min(since_ms)))
        return [0 if row is None else int(row[number] or 0) for number in range(len(since_ms))]

    def add_media(self, txn: WriteTransaction, row: MediaRow) -> None:
        """Add a file, or a reservation, under a new ID."""
        content = row.content
        txn.execute(
            f"INSERT INTO media ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.media_id,
                row.user_id,
                None if content is None else content.hash,
                "" if content is None else content.type,
                0 if content is None else content.size,
                None if content is None else content.name,
                row.created_ts,
                row.expires_ts,
                row.last_access_ts,
                int(row.authenticated),
                int(row.quarantined),
                int(row.protected),
                row.quarantined_by,
            ),
        )

    def set_content(
        self,
        txn: WriteTransaction,
        media_id: str,
        content: MediaContent,
        now_ms: int,
        *,
        authenticated: bool,
    ) -> bool:
        """Fill a reservation; False if it is filled already, or gone. The file takes the creation
        time of its content, and the `authenticated` given here."""
        sql = (
            "UPDATE media SET hash = ?, type = ?, size = ?, name = ?, expires_ts = NULL,"
            " created_ts = ?, last_access_ts = ?, "
            "authenticated = ? WHERE media_id = ? AND hash IS NULL"
        )
        columns = (content.hash, content.type, content.size, content.name)
        return txn.execute(sql, (*columns, now_ms, now_ms, int(authenticated), media_id)) > 0


def _select(txn: Transaction, media_ids: tuple[str, ...]) -> Mapping[str, MediaRow]:
    rows = txn.query_in(f"SELECT {COLUMNS} FROM media WHERE media_id IN {{keys}}", media_ids)
    return {row.media_id: row for row in map(make_row, rows)}


def make_row(row: Row) -> MediaRow:
    """Make a MediaRow from `COLUMNS`."""
    content = None if row[2] is None else MediaContent(bytes(row[2]), row[4], row[3], row[5])
    return MediaRow(
        row[0],
        row[1],
        content,
        row[6],
        row[7],
        row[8],
        bool(row[9]),
        bool(row[10]),
        bool(row[11]),
        row[12],
    )


def select_used_hashes(txn: Transaction, hashes: tuple[bytes, ...]) -> Set[bytes]:
    """Return those of the hashes that any file has: the bytes of the others may be deleted."""
    tables = ("media", "remote_media")
    return {
        bytes(row[0])
        for table in tables
        for row in txn.query_in(f"SELECT DISTINCT hash FROM {table} WHERE hash IN {{keys}}", hashes)
    }


def _set_accessed(txn: WriteTransaction, media_id: str, now_ms: int) -> None:
    txn.execute(
        "UPDATE media SET last_access_ts = ? WHERE media_id = ? AND last_access_ts < ?",
        (now_ms, media_id, now_ms),
    )


def _remove_expired(txn: WriteTransaction, now_ms: int, limit: int) -> int:
    sql = (
        "DELETE FROM media WHERE media_id IN (SELECT media_id FROM media"
        " WHERE expires_ts IS NOT NULL "
        "AND expires_ts <= ? ORDER BY expires_ts LIMIT ?)"
    )
    return txn.execute(sql, (now_ms, limit))
