"""Rescans of stored files, after new virus signatures or on request of an administrator.

Selects the contents to scan again, and stores the progress and whether a rescan is due. A content
is the bytes of one or more equal files.

The contents are marked for a scan in the order of their hashes. Each write marks some and stores
the progress, so a rescan continues after any crash. Marked contents are scanned like new ones
(`storage/media/scans.py`), but new ones are scanned first.
"""

from collections.abc import Collection, Iterator
from typing import Final, Literal, TypeGuard

import msgspec

from storage.cluster.job_progress import select_job_progress, set_job_progress
from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.scans import ScanRequest, ScanState

STUCK_AFTER_MS: Final = 30 * 24 * 3600 * 1000
"""A rescan that has not ended after this time is presumed stuck, and another may start."""
NEVER_MS: Final = -1
"""Creation time of files that are not to be scanned: before any start of scanning."""
_JOB: Final = "media_rescan"

FileKind = Literal["local", "remote", "previews"]
"""Uploads of local users, copies of remote files, pictures of URL previews."""


class Rescan(msgspec.Struct, frozen=True, kw_only=True):
    """The last rescan. Times are milliseconds since 1970."""

    reason: Literal["signatures", "administrator"]
    began_ts: int
    since_ts: int
    """Only files created since."""
    after: str = ""
    """Marked up to this hash, in hexadecimal."""
    is_marked: bool = False
    total: int = 0
    """Marked contents."""
    found: int = 0
    """Marked contents that turned out to be harmful."""
    ended_ts: int | None = None


class _State(msgspec.Struct, frozen=True):
    version: str | None = None
    """The last known version of the scanners."""
    is_due: bool = False
    """The version has changed, and no rescan has started since."""
    last: Rescan | None = None


class MediaRescanStore:
    """Stores the current or last rescan."""

    def __init__(self, *, database: Database, kinds: Collection[FileKind], max_size: int) -> None:
        """`kinds`: the files to scan, of at most `max_size` bytes."""
        self._database = database
        self._kinds = frozenset(kinds)
        self._max_size = max_size

    async def get(self) -> tuple[Rescan | None, int]:
        """Return the last rescan, and the number of contents left to scan."""
        return await self._database.read(
            "get_media_rescan", lambda txn: (_read_state(txn).last, _count_left(txn))
        )

    async def start(
        self, reason: Literal["signatures", "administrator"], now_ms: int, since_ms: int
    ) -> Rescan | None:
        """Start a rescan; None if one is running."""

        def write(txn: WriteTransaction) -> Rescan | None:
            state = _read_state(txn)
            if _is_running(state.last) and now_ms < state.last.began_ts + STUCK_AFTER_MS:
                return None
            last = Rescan(reason=reason, began_ts=now_ms, since_ts=max(since_ms, 0))
            _write_state(txn, msgspec.structs.replace(state, is_due=False, last=last))
            return last

        return await self._database.write("start_media_rescan", write)

    async def record_version(self, version: str) -> bool:
        """Record the version of the scanners. Return whether it has changed since the last
        rescan."""

        def write(txn: WriteTransaction) -> bool:
            state = _read_state(txn)
            is_due = state.is_due or (state.version is not None and state.version != version)
            if (state.version, state.is_due) != (version, is_due):
                _write_state(txn, msgspec.structs.replace(state, version=version, is_due=is_due))
            return is_due

        return await self._database.write("record_scanner_version", write)

    async def mark(self, limit: int, now_ms: int) -> int:
        """Read `limit` contents and mark those to scan. Return how many were read. Also records the
        end of the rescan."""
        return await self._database.write("mark_media_rescan", self._mark, limit, now_ms)

    def count_found(self, txn: WriteTransaction, hash: bytes) -> None:
        """Count a known content that was found harmful, if it was marked."""
        row = txn.query_one("SELECT request FROM media_scans WHERE digest = ?", (hash,))
        state = _read_state(txn)
        if row is not None and row[0] == ScanRequest.AGAIN and state.last is not None:
            _write_state(
                txn,
                msgspec.structs.replace(
                    state, last=msgspec.structs.replace(state.last, found=state.last.found + 1)
                ),
            )

    def _mark(self, txn: WriteTransaction, limit: int, now_ms: int) -> int:
        state = _read_state(txn)
        last = state.last
        if not _is_running(last):
            return 0
        if last.is_marked:
            if not _count_left(txn):
                _write_state(
                    txn,
                    msgspec.structs.replace(
                        state, last=msgspec.structs.replace(last, ended_ts=now_ms)
                    ),
                )
            return 0
        rows = self._select(txn, bytes.fromhex(last.after), limit)
        selected = [
            hash
            for hash, created_ts, size in rows
            if created_ts >= last.since_ts and size <= self._max_size
        ]
        known = {
            bytes(row[0]): ScanState(row[1])
            for row in txn.query_in(
                "SELECT digest, state FROM media_scans WHERE digest IN {keys}", selected
            )
        }
        clean = [hash for hash in selected if known.get(hash) is ScanState.CLEAN]
        new = [hash for hash in selected if hash not in known]
        unscanned = [hash for hash in selected if known.get(hash) is ScanState.UNKNOWN]
        txn.execute_many(
            f"UPDATE media_scans SET request = {ScanRequest.AGAIN:d}, due_ts = 0 WHERE digest = ?",
            [(hash,) for hash in clean],
        )
        txn.execute_many(
            "INSERT INTO media_scans (digest, hash, state, version, scanned_ts, request, due_ts)"
            f" VALUES (?, ?, {ScanState.UNKNOWN:d}, '', 0, {ScanRequest.AGAIN:d}, 0)",
            [(hash, hash) for hash in new],
        )
        # A scan that failed may succeed now: it is due without a pause
        txn.execute_many(
            "UPDATE media_scans SET failures = 0, due_ts = 0 WHERE digest = ? AND failures > 0",
            [(hash,) for hash in unscanned],
        )
        changed = msgspec.structs.replace(
            last,
            after=rows[-1][0].hex() if rows else last.after,
            is_marked=len(rows) < limit,
            total=last.total + len(clean) + len(new),
        )
        _write_state(txn, msgspec.structs.replace(state, last=changed))
        return len(rows)

    def _select(self, txn: Transaction, after: bytes, limit: int) -> list[tuple[bytes, int, int]]:
        """Return the contents after a hash, in order: the creation time of the latest file to scan,
        if any, and the size.

        All contents are read by hash, `limit` at a time. If the database skipped other kinds, one
        step could read a whole table.
        """
        found: dict[bytes, tuple[bytes, int, int]] = {}
        for table, created_ts in self._tables():
            rows: list[Row] = txn.query(
                f"SELECT hash, MAX({created_ts}), MAX(size) FROM {table} WHERE hash > ?"
                " GROUP BY hash ORDER BY hash LIMIT ?",
                (after, limit),
            )
            for hash, latest, size in rows:
                other = found.get(bytes(hash), (b"", NEVER_MS, 0))
                found[bytes(hash)] = (bytes(hash), max(int(latest), other[1]), int(size))
        return sorted(found.values())[:limit]

    def _tables(self) -> Iterator[tuple[str, str]]:
        """Return the tables with files to scan, each with an expression for the creation time of
        such a file."""
        of_kind = {"local": "user_id <> ''", "previews": "user_id = ''"}
        selected = [condition for kind, condition in of_kind.items() if kind in self._kinds]
        if selected:
            yield "media", f"CASE WHEN {' OR '.join(selected)} THEN created_ts ELSE {NEVER_MS} END"
        if "remote" in self._kinds:
            yield "remote_media", "created_ts"


def _is_running(last: Rescan | None) -> TypeGuard[Rescan]:
    return last is not None and last.ended_ts is None


def _read_state(txn: Transaction) -> _State:
    text = select_job_progress(txn, _JOB)
    return _State() if text is None else msgspec.json.decode(text, type=_State)


def _write_state(txn: WriteTransaction, state: _State) -> None:
    set_job_progress(txn, _JOB, msgspec.json.encode(state).decode())


def _count_left(txn: Transaction) -> int:
    row = txn.query_one(
        f"SELECT COUNT(*) FROM media_scans WHERE request = {ScanRequest.AGAIN:d} AND request > 0"
    )
    return 0 if row is None else int(row[0])
