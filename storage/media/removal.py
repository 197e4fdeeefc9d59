"""Deletes files: selects the candidates, deletes their rows, and records the deletions.

Laws:
- A caller that deletes rows holds the folder's lock (`storage/media/files.py`), so no file is added
  while an equal one is removed.
- The write that deletes unreferenced files first reads the events that the job of
  `reference_follower.py` has not read yet, for their references. If there are too many unread
  events, it deletes nothing.
- A write that deletes files also records each of them, with the time and the reason.
- Quarantined or protected files are deleted only on an explicit request.
"""

from collections.abc import Iterable, Sequence, Set
from enum import Enum
from typing import Final, Literal

import msgspec

from storage.engine.database import Database
from storage.engine.interface import CUSTOM_PLAN, Row
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.content_uris import ContentURI
from storage.media.media import select_used_hashes
from storage.media.reference_follower import catch_up
from storage.media.references import get_referenced_condition
from storage.media.scans import remove_scans

MAX_UNREAD_EVENTS: Final = 2000
"""The number of events that may still have to be read when files are deleted."""


class RemovalReason(Enum):
    """Why a file was deleted."""

    UNREFERENCED = "unreferenced"
    RETENTION = "retention"
    """The last message with it exceeded its room's retention period."""
    PURGE = "purge"
    """An administrator purged the last message with it."""
    FORGOTTEN = "forgotten"
    """The last message with it was in a room that no local user remembers."""
    UNREAD = "unread"
    AGE = "age"
    UPLOADER = "uploader"
    ADMINISTRATOR = "administrator"


class RemovableFile(msgspec.Struct, frozen=True):
    """A file to delete."""

    address: ContentURI
    hash: bytes


class Deletion(msgspec.Struct, frozen=True):
    """A deleted file. Times are milliseconds since 1970."""

    number: int
    deleted_ts: int
    origin: str
    media_id: str
    user_id: str | None
    hash: bytes
    type: str
    size: int
    created_ts: int
    reason: str
    by_user_id: str | None


class RemovedFiles(msgspec.Struct, frozen=True):
    """Deleted files, and the contents that no file has any more."""

    addresses: Sequence[ContentURI]
    unused: Set[bytes]


NOTHING: Final = RemovedFiles((), frozenset())
_COLUMNS = (
    "deletion_nid, deleted_ts, origin, media_id, user_id, hash, type, size, created_ts, reason,"
    " by_user_id"
)


class MediaRemovalStore:
    """Deletes the rows of files. `own`: this server's name."""

    def __init__(self, *, database: Database, own: str) -> None:
        self._database = database
        self._own = own

    async def get_unreferenced(self, before_ms: int, limit: int) -> Sequence[RemovableFile]:
        """Return at most `limit` files without a reference since then, longest first."""
        return await self._database.read(
            "get_unreferenced_media", self._select_unreferenced, before_ms, limit
        )

    async def get_unread(self, before_ms: int, limit: int, *, own: bool) -> Sequence[RemovableFile]:
        """Return at most `limit` files, local ones or copies, that nobody has read since then,
        longest first.

        Pictures of URL previews are excluded: they are deleted with their previews.
        """
        return await self._get_before("last_access_ts", before_ms, limit, own)

    async def get_old(self, before_ms: int, limit: int, *, own: bool) -> Sequence[RemovableFile]:
        """Return the same, but files created before then; the oldest first."""
        return await self._get_before("created_ts", before_ms, limit, own)

    async def _get_before(
        self, column: Literal["last_access_ts", "created_ts"], before_ms: int, limit: int, own: bool
    ) -> Sequence[RemovableFile]:
        table, origin, condition = (
            ("media", "?", " AND protected = 0 AND user_id <> ''")
            if own
            else ("remote_media", "COALESCE(?, origin)", "")
        )
        sql = (
            f"SELECT {origin}, media_id, hash FROM {table}"
            f" WHERE hash IS NOT NULL AND quarantined = 0{condition}"
            f" AND {column} < ? ORDER BY {column} LIMIT ?"
        )

        def read(txn: Transaction) -> list[RemovableFile]:
            return _removable(txn.query(sql, (self._own if own else None, before_ms, limit)))

        return await self._database.read("get_media_before", read)

    async def get_files(self, addresses: Iterable[ContentURI]) -> Sequence[RemovableFile]:
        """Return those of these files that exist."""
        requested = list(addresses)

        def read(txn: Transaction) -> list[RemovableFile]:
            own = [address.media_id for address in requested if address.origin == self._own]
            rows = [
                (self._own, *row)
                for row in txn.query_in(
                    "SELECT media_id, hash FROM media"
                    " WHERE hash IS NOT NULL AND media_id IN {keys}",
                    own,
                )
            ]
            remote = [address for address in requested if address.origin != self._own]
            sql = (
                "SELECT origin, media_id, hash FROM remote_media WHERE origin = ? AND media_id = ?"
            )
            rows += [
                row for found in (txn.query_each(sql, remote) if remote else ()) for row in found
            ]
            return _removable(rows)

        return await self._database.read("get_removable_media", read)

    async def remove_missing(self, before_ms: int, limit: int) -> int:
        """Delete the content URIs of missing files without a reference. Return how many."""
        return await self._database.write(
            "remove_missing_media", self._remove_missing, before_ms, limit
        )

    async def get_deletions(self, before_number: int | None, limit: int) -> Sequence[Deletion]:
        """Return deletions, the latest first."""
        return await self._database.read(
            "get_deleted_media", _select_deletions, before_number, limit
        )

    async def remove_deletions(self, before_ms: int, limit: int) -> int:
        """Delete at most `limit` old records of deletions. Return how many."""
        sql = (
            "DELETE FROM deleted_media WHERE deletion_nid IN"
            " (SELECT deletion_nid FROM deleted_media WHERE deleted_ts < ?"
            " ORDER BY deleted_ts LIMIT ?)"
        )
        return await self._database.write(
            "remove_deletion_records", lambda txn: txn.execute(sql, (before_ms, limit))
        )

    def remove_unreferenced(
        self, txn: WriteTransaction, files: Sequence[RemovableFile], before_ms: int, now_ms: int
    ) -> RemovedFiles:
        """Delete those of them that are still unreferenced; none if too many events were not read
        yet."""
        if not catch_up(txn, MAX_UNREAD_EVENTS):
            return NOTHING
        condition, args = get_referenced_condition(self._own)
        sql = (
            f"SELECT CASE WHEN {condition} THEN 1 ELSE 0 END, media_nid, cause"
            " FROM tracked_media AS k"
            " WHERE k.origin = ? AND k.media_id = ? AND k.unreferenced_ts <= ?"
        )
        unreferenced: dict[RemovalReason, list[ContentURI]] = {}
        for file in files:
            row = txn.query_one(sql, (*args, *file.address, before_ms))
            if row is not None and row[0]:
                txn.execute(
                    "UPDATE tracked_media SET unreferenced_ts = NULL WHERE media_nid = ?", (row[1],)
                )
            elif row is not None:
                unreferenced.setdefault(RemovalReason(row[2]), []).append(file.address)
        removed = [
            self.remove(txn, addresses, reason, now_ms)
            for reason, addresses in unreferenced.items()
        ]
        unused = {hash for each in removed for hash in each.unused}
        return RemovedFiles([address for each in removed for address in each.addresses], unused)

    def remove(
        self,
        txn: WriteTransaction,
        files: Sequence[ContentURI],
        reason: RemovalReason,
        now_ms: int,
        *,
        by: str | None = None,
        include_quarantined: bool = False,
        unread_since: int | None = None,
    ) -> RemovedFiles:
        """Delete the rows of these files, and record it. `include_quarantined`: quarantined or
        protected ones too.

        `unread_since`: only those that nobody has read since.
        """
        condition = "" if include_quarantined else " AND quarantined = 0"
        own_condition = condition and condition + " AND protected = 0"
        if unread_since is not None:
            condition, own_condition = (
                f"{each} AND last_access_ts < {unread_since:d}"
                for each in (condition, own_condition)
            )
        rows = [
            (ContentURI(origin, media_id), user_id, bytes(hash), type, size, created_ts)
            for address in files
            for origin, media_id, user_id, hash, type, size, created_ts in (
                txn.query(
                    "DELETE FROM media WHERE media_id = ? AND hash IS NOT NULL"
                    f"{own_condition} RETURNING ?, media_id, user_id, hash, type, size, created_ts",
                    (address.media_id, self._own),
                )
                if address.origin == self._own
                else txn.query(
                    f"DELETE FROM remote_media WHERE origin = ? AND media_id = ?{condition}"
                    " RETURNING origin, media_id, NULL, hash, type, size, created_ts",
                    address,
                )
            )
        ]
        if not rows:
            return NOTHING
        first = txn.allocate("media_deletion", len(rows))
        txn.execute_many(
            f"INSERT INTO deleted_media ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (number, now_ms, *address, user_id, hash, type, size, created_ts, reason.value, by)
                for number, (address, user_id, hash, type, size, created_ts) in enumerate(
                    rows, first
                )
            ],
        )
        _remove_uris(txn, [row[0] for row in rows])
        hashes = {row[2] for row in rows}
        unused = hashes - select_used_hashes(txn, tuple(hashes))
        remove_scans(txn, unused)
        return RemovedFiles([row[0] for row in rows], unused)

    def _select_unreferenced(
        self, txn: Transaction, before_ms: int, limit: int
    ) -> list[RemovableFile]:
        rows = txn.query(
            f"{CUSTOM_PLAN}SELECT k.origin, k.media_id, m.hash FROM tracked_media AS k"
            " JOIN media AS m ON m.media_id = k.media_id"
            " WHERE k.origin = ? AND k.unreferenced_ts <= ? AND m.hash IS NOT NULL"
            " AND m.quarantined = 0"
            " AND m.protected = 0 ORDER BY k.unreferenced_ts LIMIT ?",
            (self._own, before_ms, limit),
        )
        rows += txn.query(
            f"{CUSTOM_PLAN}SELECT k.origin, k.media_id, m.hash FROM tracked_media AS k"
            " JOIN remote_media AS m ON m.origin = k.origin AND m.media_id = k.media_id"
            " WHERE k.unreferenced_ts <= ? AND m.quarantined = 0"
            " ORDER BY k.unreferenced_ts LIMIT ?",
            (before_ms, limit),
        )
        return _removable(rows[:limit])

    def _remove_missing(self, txn: WriteTransaction, before_ms: int, limit: int) -> int:
        rows = txn.query(
            f"{CUSTOM_PLAN}SELECT k.media_nid, k.origin, k.media_id FROM tracked_media AS k"
            " WHERE k.unreferenced_ts <= ? AND NOT EXISTS (SELECT 1 FROM remote_media AS r"
            " WHERE r.origin = k.origin"
            " AND r.media_id = k.media_id) AND NOT (k.origin = ?"
            " AND EXISTS (SELECT 1 FROM media AS m"
            " WHERE m.media_id = k.media_id)) ORDER BY k.unreferenced_ts LIMIT ?",
            (before_ms, self._own, limit),
        )
        _remove_uris(txn, [(origin, media_id) for _, origin, media_id in rows])
        return len(rows)


def _remove_uris(txn: WriteTransaction, addresses: Sequence[tuple[str, str]]) -> None:
    """Delete the rows of missing files. Keep rows that an expired reference still names, so the
    content URI cannot be reused."""
    txn.execute_many(
        "DELETE FROM tracked_media WHERE origin = ? AND media_id = ?"
        " AND NOT EXISTS (SELECT 1 FROM media_event_references AS e"
        " WHERE e.media_nid = tracked_media.media_nid)"
        " AND NOT EXISTS (SELECT 1 FROM media_setting_references AS s"
        " WHERE s.media_nid = tracked_media.media_nid)",
        addresses,
    )
    txn.execute_many(
        "UPDATE tracked_media SET unreferenced_ts = NULL WHERE origin = ? AND media_id = ?",
        addresses,
    )


def _removable(rows: Iterable[Row]) -> list[RemovableFile]:
    return [
        RemovableFile(ContentURI(origin, media_id), bytes(hash)) for origin, media_id, hash in rows
    ]


def _select_deletions(
    txn: Transaction, before_number: int | None, limit: int
) -> Sequence[Deletion]:
    sql = (
        f"SELECT {_COLUMNS} FROM deleted_media WHERE deletion_nid < ?"
        " ORDER BY deletion_nid DESC LIMIT ?"
    )
    rows = txn.query(sql, (2**62 if before_number is None else before_number, limit))
    return [
        Deletion(number, deleted_ts, origin, media_id, user_id, bytes(hash), *rest)
        for number, deleted_ts, origin, media_id, user_id, hash, *rest in rows
    ]
