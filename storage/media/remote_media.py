"""Rows of copies of remote files: origin, type and content hash."""

from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.media import MediaContent


class RemoteMediaRow(msgspec.Struct, frozen=True):
    """A copy. Times are milliseconds since 1970."""

    origin: str
    media_id: str
    content: MediaContent
    created_ts: int
    last_access_ts: int
    authenticated: bool
    """Served only to authenticated requests."""
    quarantined: bool = False
    quarantined_by: str | None = None
    """The user ID that quarantined it, or `system`."""


COPY_COLUMNS: Final = (
    "origin, media_id, hash, type, size, name, created_ts, last_access_ts, authenticated,"
    " quarantined, quarantined_by"
)


class RemoteMediaStore:
    """Reads and writes the table `remote_media`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_copy(self, origin: str, media_id: str) -> RemoteMediaRow | None:
        """Return the copy of a file, or None."""
        return await self._database.read_quickly("get_remote_media", _select, origin, media_id)

    async def set_accessed(self, origin: str, media_id: str, now_ms: int) -> None:
        """Record a read of the copy."""
        await self._database.write(
            "set_remote_media_accessed", _set_accessed, origin, media_id, now_ms
        )

    def add_copy(self, txn: WriteTransaction, row: RemoteMediaRow) -> bool:
        """Add a copy; False if there is one, which stays: the file behind a content URI never
        changes."""
        content = row.content
        count = txn.execute(
            f"INSERT INTO remote_media ({COPY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (origin, media_id) DO NOTHING",
            (
                row.origin,
                row.media_id,
                content.hash,
                content.type,
                content.size,
                content.name,
                row.created_ts,
                row.last_access_ts,
                int(row.authenticated),
                int(row.quarantined),
                row.quarantined_by,
            ),
        )
        return count > 0


def _select(txn: Transaction, origin: str, media_id: str) -> RemoteMediaRow | None:
    row = txn.query_one(
        f"SELECT {COPY_COLUMNS} FROM remote_media WHERE origin = ? AND media_id = ?",
        (origin, media_id),
    )
    return None if row is None else make_copy(row)


def make_copy(row: Row) -> RemoteMediaRow:
    """Make a RemoteMediaRow from `COPY_COLUMNS`."""
    content = MediaContent(bytes(row[2]), row[4], row[3], row[5])
    return RemoteMediaRow(
        row[0], row[1], content, row[6], row[7], bool(row[8]), bool(row[9]), row[10]
    )


def _set_accessed(txn: WriteTransaction, origin: str, media_id: str, now_ms: int) -> None:
    txn.execute(
        "UPDATE remote_media SET last_access_ts = ?"
        " WHERE origin = ? AND media_id = ? AND last_access_ts < ?",
        (now_ms, origin, media_id, now_ms),
    )
