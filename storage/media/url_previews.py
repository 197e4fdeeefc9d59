"""Cached URL previews, and their pictures, which are files without an owner."""

from collections.abc import Sequence, Set

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.media import MediaContent, MediaRow, MediaStore, select_used_hashes
from storage.media.scans import remove_scans

NO_USER = ""
"""The owner of the pictures."""


class PreviewRow(msgspec.Struct, frozen=True):
    """A preview. `body`: JSON, or None if the preview failed. `expires_ts`: milliseconds since
    1970."""

    url: str
    body: str | None
    media_id: str | None
    expires_ts: int


class URLPreviewStore:
    """Reads and writes the tables of URL previews."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._media = MediaStore(database)

    async def get_preview(self, url: str, now_ms: int) -> PreviewRow | None:
        """Return the preview of a page, unless it has expired."""
        return await self._database.read_quickly("get_url_preview", _select, url, now_ms)

    async def put_preview(self, row: PreviewRow) -> None:
        """Insert or replace a preview."""
        await self._database.write("put_url_preview", _put, row)

    def add_picture(
        self,
        txn: WriteTransaction,
        url: str,
        media_id: str,
        content: MediaContent,
        now_ms: int,
        *,
        authenticated: bool,
    ) -> str:
        """Add a picture of a page under a new ID, unless the page has it already. Return its ID."""
        before = txn.query_one(
            "SELECT m.media_id FROM url_previews p JOIN media m ON m.media_id = p.media_id "
            "WHERE p.url = ? AND m.hash = ? AND m.quarantined = 0",
            (url, content.hash),
        )
        if before is not None:
            return str(before[0])
        self._media.add_media(
            txn, MediaRow(media_id, NO_USER, content, now_ms, None, now_ms, authenticated)
        )
        txn.execute(
            "INSERT INTO url_preview_images (media_id, created_ts) VALUES (?, ?)",
            (media_id, now_ms),
        )
        return media_id

    async def remove_old(self, before_ms: int, limit: int) -> int:
        """Delete at most `limit` previews that expired before then. Return how many."""
        return await self._database.write("remove_old_url_previews", _remove_old, before_ms, limit)

    async def get_old_pictures(self, before_ms: int, limit: int) -> Sequence[tuple[str, bytes]]:
        """Return IDs and hashes of at most `limit` pictures from before then that no preview
        uses."""
        return await self._database.read("get_old_preview_pictures", _select_old, before_ms, limit)

    def remove_pictures(
        self, txn: WriteTransaction, pictures: Sequence[tuple[str, bytes]]
    ) -> Set[bytes]:
        """Delete pictures, unless a preview uses them after all. Return the hashes that no file has
        any more."""
        for media_id, _hash in pictures:
            if txn.query_one("SELECT 1 FROM url_previews WHERE media_id = ?", (media_id,)) is None:
                txn.execute("DELETE FROM media WHERE media_id = ? AND quarantined = 0", (media_id,))
                txn.execute("DELETE FROM url_preview_images WHERE media_id = ?", (media_id,))
        hashes = {hash for _media_id, hash in pictures}
        unused = hashes - select_used_hashes(txn, tuple(hashes))
        remove_scans(txn, unused)
        return unused


def _select(txn: Transaction, url: str, now_ms: int) -> PreviewRow | None:
    row = txn.query_one(
        "SELECT body, media_id, expires_ts FROM url_previews WHERE url = ? AND expires_ts > ?",
        (url, now_ms),
    )
    return None if row is None else PreviewRow(url, row[0], row[1], row[2])


def _put(txn: WriteTransaction, row: PreviewRow) -> None:
    txn.execute(
        "INSERT INTO url_previews (url, body, media_id, expires_ts) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (url) DO UPDATE SET "
        "body = excluded.body, media_id = excluded.media_id, expires_ts = excluded.expires_ts",
        (row.url, row.body, row.media_id, row.expires_ts),
    )


def _remove_old(txn: WriteTransaction, before_ms: int, limit: int) -> int:
    sql = (
        "DELETE FROM url_previews WHERE url IN "
        "(SELECT url FROM url_previews WHERE expires_ts < ? ORDER BY expires_ts LIMIT ?)"
    )
    return txn.execute(sql, (before_ms, limit))


def _select_old(txn: Transaction, before_ms: int, limit: int) -> Sequence[tuple[str, bytes]]:
    sql = (
        "SELECT m.media_id, m.hash FROM url_preview_images p"
        " JOIN media m ON m.media_id = p.media_id "
        "WHERE p.created_ts < ? AND m.quarantined = 0 "
        "AND NOT EXISTS (SELECT 1 FROM url_previews u WHERE u.media_id = p.media_id)"
        " ORDER BY p.created_ts LIMIT ?"
    )
    return [(row[0], bytes(row[1])) for row in txn.query(sql, (before_ms, limit))]
