"""Scan results by content, so that files with the same bytes are scanned once.

A content is the bytes of one or more equal files (`contents.py`).

Laws:
- The write that adds a new file also records that it has to be scanned, so no crash loses a scan.
- One write stores the verdict on a content and its effect: a harmful content quarantines all files
  with these bytes.
- A content that an administrator released stays released, whatever is found later. A harmful
  content stays harmful until it is released.
- The results for a content are deleted with the last file that has it.
- Encrypted files are also scanned after decryption, with the key that a client sends. A client can
  make up any number of keys for one file, and each key gives other decrypted bytes. So clean
  verdicts on decrypted contents are limited per encrypted file, and expire.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from enum import IntEnum
from typing import Final

import msgspec
from msgspec.structs import replace

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.content_uris import ContentURI
from storage.media.media import select_used_hashes
from storage.media.quarantine import QuarantineStore


class ScanState(IntEnum):
    """The scan result of a content."""

    UNKNOWN = 0
    CLEAN = 1
    HARMFUL = 2
    RELEASED = 3
    """Harmful, but released by an administrator."""


class ScanRequest(IntEnum):
    """Whether a job is to scan the content."""

    NOT = 0
    AGAIN = 1
    FIRST = 2


class ScanRow(msgspec.Struct, frozen=True):
    """A scan result. Times are milliseconds since 1970."""

    digest: bytes
    hash: bytes
    state: ScanState
    version: str
    scanned_ts: int
    finding: str | None = None
    by_user_id: str | None = None
    failures: int = 0
    """Consecutive failures while the scanner worked for other contents."""
    due_ts: int = 0
    """No job scans it before this time; after failures nobody does."""


class ScannedFile(msgspec.Struct, frozen=True):
    """A file that has a scanned content. `user_id`: the local uploader."""

    address: ContentURI
    user_id: str | None


MAX_INSIDE: Final = 20
"""The maximum number of clean verdicts on decrypted contents per content."""
MAX_DOUBLINGS: Final = 20
"""The maximum number of doublings of the pause."""
_RESULT_COLUMNS: Final = "digest, hash, state, version, scanned_ts, finding, by_user_id"
_COLUMNS: Final = f"{_RESULT_COLUMNS}, failures, due_ts"


class MediaScanStore:
    """Reads and writes the table `media_scans`."""

    def __init__(self, *, database: Database, quarantine: QuarantineStore) -> None:
        self._database = database
        self._quarantine = quarantine

    async def get_scan(self, digest: bytes) -> ScanRow | None:
        """Return the result for one digest, or None."""
        rows = await self._database.read_quickly("get_media_scan", _select, (digest,))
        return rows.get(digest)

    async def get_scans(self, digests: Iterable[bytes]) -> Mapping[bytes, ScanRow]:
        """Return the results for those digests that have one."""
        return await self._database.read("get_media_scans", _select, tuple(digests))

    async def get_findings(self, start: int, limit: int) -> Sequence[ScanRow]:
        """Return harmful contents, the latest first."""
        sql = (
            f"SELECT {_COLUMNS} FROM media_scans WHERE state >= 2"
            " ORDER BY scanned_ts DESC, digest LIMIT ? OFFSET ?"
        )
        rows = await self._database.read(
            "get_media_findings", lambda txn: txn.query(sql, (limit, start))
        )
        return [_row(row) for row in rows]

    async def get_files(
        self, own: str, hashes: Iterable[bytes]
    ) -> Mapping[bytes, Sequence[ScannedFile]]:
        """Return the files with these contents; `own`: this server's name. Pictures of URL previews
        have no owner."""
        return await self._database.read("get_files_of_contents", _select_files, own, tuple(hashes))

    async def count_requested(self) -> Mapping[ScanRequest, int]:
        """Count the contents that wait for a job."""
        sql = "SELECT request, COUNT(*) FROM media_scans WHERE request > 0 GROUP BY request"
        rows = await self._database.read("count_requested_media_scans", lambda txn: txn.query(sql))
        return {
            ScanRequest.AGAIN: 0,
            ScanRequest.FIRST: 0,
            **{ScanRequest(request): int(count) for request, count in rows},
        }

    async def lease_requested(self, now_ms: int, until_ms: int, limit: int) -> Sequence[bytes]:
        """Lease at most `limit` waiting contents until `until_ms`, first those without a result."""
        return await self._database.write(
            "lease_requested_media_scans", _lease, now_ms, until_ms, limit
        )

    async def postpone(self, hash: bytes, until_ms: int) -> None:
        """Let a job retry the scan then, since no scanner is available. A file from before scanning
        was enabled is added."""

        def write(txn: WriteTransaction) -> None:
            if not _add_unscanned(txn, hash, until_ms):
                txn.execute(
                    "UPDATE media_scans SET due_ts = ? WHERE digest = ? AND request > 0",
                    (until_ms, hash),
                )

        await self._database.write("postpone_media_scan", write)

    async def record_failure(
        self, hash: bytes, now_ms: int, backoff_ms: int, max_backoff_ms: int
    ) -> None:
        """Record that the scan failed while others succeed. The pause before a retry doubles each
        time.

        A content that was clean before counts as clean and is not retried, so that one such file
        does not keep a rescan from ending.
        """
        first = f"request = {ScanRequest.FIRST:d}, failures = failures + 1, due_ts = ?"

        def write(txn: WriteTransaction) -> None:
            _add_unscanned(txn, hash, now_ms)
            row = _select(txn, (hash,)).get(hash)
            if row is None:
                return
            if row.state is ScanState.UNKNOWN:
                pause = min(backoff_ms << min(row.failures, MAX_DOUBLINGS), max_backoff_ms)
                txn.execute(
                    f"UPDATE media_scans SET {first} WHERE digest = ?", (now_ms + pause, hash)
                )
            else:
                txn.execute("UPDATE media_scans SET request = 0 WHERE digest = ?", (hash,))

        await self._database.write("record_media_scan_failure", write)

    async def remove_inside(self, before_ms: int, limit: int) -> int:
        """Delete at most `limit` clean verdicts on decrypted contents from before then. Return how
        many. The next request scans them again."""
        return await self._database.write(
            "remove_decrypted_media_scans", _remove_inside, before_ms, limit
        )

    async def remove_unused(self, hash: bytes) -> None:
        """Delete the results of a missing content, unless a file has it."""

        def write(txn: WriteTransaction) -> None:
            remove_scans(txn, {hash} - select_used_hashes(txn, (hash,)))

        await self._database.write("remove_media_scan", write)

    def record_file(self, txn: WriteTransaction, hash: bytes, until_ms: int) -> ScanState:
        """Record the content of a new file. Return its state. A harmful file is quarantined.

        `until_ms`: until then the receiver of the file scans it, and no job.
        """
        if _add_unscanned(txn, hash, until_ms):
            return ScanState.UNKNOWN
        state = _select(txn, (hash,))[hash].state
        if state is ScanState.HARMFUL:
            self._quarantine.quarantine_harmful(txn, hash)
        return state

    def set_verdict(
        self, txn: WriteTransaction, verdict: ScanRow, *, quarantine: bool
    ) -> Sequence[str]:
        """Store a verdict, unless no file has the content any more, or an administrator has
        released it.

        `quarantine`: if it is harmful, quarantine all files with these bytes. Returns the local
        uploaders of the files that this quarantines.
        """
        if not select_used_hashes(txn, (verdict.hash,)):
            return ()
        _put(txn, verdict)
        if verdict.digest != verdict.hash and verdict.state is ScanState.CLEAN:
            _limit_inside(txn, verdict.hash)
        if verdict.state is not ScanState.HARMFUL or not quarantine:
            return ()
        if verdict.digest != verdict.hash:
            _put(txn, replace(verdict, digest=verdict.hash))
        if _select(txn, (verdict.hash,))[verdict.hash].state is ScanState.RELEASED:
            return ()
        return self._quarantine.quarantine_harmful(txn, verdict.hash)


def remove_scans(txn: WriteTransaction, hashes: Set[bytes]) -> None:
    """Delete the results of contents that no file has any more."""
    if hashes:
        txn.execute_many(
            "DELETE FROM media_scans WHERE hash = ?", [(hash,) for hash in sorted(hashes)]
        )


_IS_CLEAN_INSIDE: Final = f"state = {ScanState.CLEAN:d} AND digest <> hash"


def _remove_inside(txn: WriteTransaction, before_ms: int, limit: int) -> int:
    return txn.execute(
        "DELETE FROM media_scans WHERE digest IN (SELECT digest FROM media_scans"
        f" WHERE {_IS_CLEAN_INSIDE}"
        " AND scanned_ts < ? ORDER BY scanned_ts LIMIT ?)",
        (before_ms, limit),
    )


def _limit_inside(txn: WriteTransaction, hash: bytes) -> None:
    """Delete all but the latest clean verdicts on decrypted contents of a file; if there are many,
    some at a time."""
    txn.execute(
        "DELETE FROM media_scans WHERE digest IN (SELECT digest FROM media_scans"
        f" WHERE hash = ? AND {_IS_CLEAN_INSIDE}"
        " ORDER BY scanned_ts DESC, digest LIMIT ? OFFSET ?)",
        (hash, MAX_INSIDE, MAX_INSIDE),
    )


def _select(txn: Transaction, digests: tuple[bytes, ...]) -> Mapping[bytes, ScanRow]:
    rows = txn.query_in(f"SELECT {_COLUMNS} FROM media_scans WHERE digest IN {{keys}}", digests)
    return {row.digest: row for row in map(_row, rows)}


def _row(row: Row) -> ScanRow:
    return ScanRow(bytes(row[0]), bytes(row[1]), ScanState(row[2]), *row[3:])


def _add_unscanned(txn: WriteTransaction, hash: bytes, until_ms: int) -> bool:
    """Record a content without a result as to be scanned. Return whether it was added. Ignores
    contents that no file has."""
    sql = (
        "INSERT INTO media_scans (digest, hash, state, version, scanned_ts, request, due_ts)"
        f" SELECT ?, ?, {ScanState.UNKNOWN:d}, '', 0, {ScanRequest.FIRST:d}, ? WHERE EXISTS"
        " (SELECT 1 FROM media WHERE hash = ?) OR EXISTS (SELECT 1 FROM remote_media"
        " WHERE hash = ?)"
        " ON CONFLICT (digest) DO NOTHING"
    )
    return txn.execute(sql, (hash, hash, until_ms, hash, hash)) > 0


def _put(txn: WriteTransaction, row: ScanRow) -> None:
    """Insert or replace a result, unless it was harmful."""
    done = txn.execute(
        f"INSERT INTO media_scans ({_RESULT_COLUMNS}, request, due_ts)"
        f" VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)"
        " ON CONFLICT (digest) DO UPDATE SET state = excluded.state, version = excluded.version,"
        " scanned_ts = excluded.scanned_ts, finding = excluded.finding,"
        " by_user_id = excluded.by_user_id, request = 0, failures = 0,"
        " due_ts = 0 WHERE media_scans.state < 2",
        (
            row.digest,
            row.hash,
            int(row.state),
            row.version,
            row.scanned_ts,
            row.finding,
            row.by_user_id,
        ),
    )
    if not done:
        txn.execute("UPDATE media_scans SET request = 0 WHERE digest = ?", (row.digest,))


def _lease(txn: WriteTransaction, now_ms: int, until_ms: int, limit: int) -> Sequence[bytes]:
    rows: list[Row] = []
    for request in (ScanRequest.FIRST, ScanRequest.AGAIN):
        sql = (
            "SELECT digest FROM media_scans"
            f" WHERE request = {request:d} AND request > 0 AND due_ts <= ?"
            " ORDER BY due_ts LIMIT ?"
        )
        rows += txn.query(sql, (now_ms, limit - len(rows)))
    hashes = [bytes(row[0]) for row in rows]
    txn.execute_many(
        "UPDATE media_scans SET due_ts = ? WHERE digest = ?",
        [(until_ms, hash) for hash in hashes],
    )
    return hashes


def _select_files(
    txn: Transaction, own: str, hashes: tuple[bytes, ...]
) -> Mapping[bytes, Sequence[ScannedFile]]:
    found: dict[bytes, list[ScannedFile]] = {}
    for row in txn.query_in(
        "SELECT hash, media_id, user_id FROM media WHERE hash IN {keys}", hashes
    ):
        found.setdefault(bytes(row[0]), []).append(
            ScannedFile(ContentURI(own, row[1]), row[2] or None)
        )
    for row in txn.query_in(
        "SELECT hash, origin, media_id FROM remote_media WHERE hash IN {keys}", hashes
    ):
        found.setdefault(bytes(row[0]), []).append(ScannedFile(ContentURI(row[1], row[2]), None))
    return found
