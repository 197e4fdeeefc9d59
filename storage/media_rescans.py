"""Scanning again what was scanned before: which contents, how far it is, and when the next time comes.

The contents are marked in the order of their hashes, some in each write, with how far that is in the same write: so it goes on where
it was, whatever dies when. What is marked is scanned like what is new, and after it (`storage/media_scans.py`).
"""

from collections.abc import Collection
from typing import Final, Literal, TypeGuard

import msgspec

from storage.database import Database
from storage.engine import Row
from storage.job_notes import put_note, select_note
from storage.media_scans import ScanState, Wanted
from storage.transaction import Transaction, WriteTransaction

LONGEST_MS: Final = 30 * 24 * 3600 * 1000
"""After so long one that has not ended is taken for stuck, and another may begin."""
_NOTE: Final = "media_rescan"

FileKind = Literal["local", "remote", "previews"]
"""Uploads of this server's users, copies of other servers' files, pictures of previews."""


class Rescan(msgspec.Struct, frozen=True, kw_only=True):
    """The last one. Times are milliseconds since 1970."""

    reason: Literal["signatures", "administrator"]
    began_ts: int
    since_ts: int
    """Only files that have come since."""
    after: str = ""
    """Marked up to this hash, in hexadecimal."""
    is_marked: bool = False
    total: int = 0
    """Contents that were marked."""
    found: int = 0
    """Of them, those that turned out to be harmful."""
    ended_ts: int | None = None


class _Note(msgspec.Struct, frozen=True):
    version: str | None = None
    """Of the scanners, when it was looked at last."""
    is_due: bool = False
    """It has changed, and no rescan has begun since."""
    last: Rescan | None = None


class MediaRescanStore:
    """Keeps the one that is under way, or was last."""

    def __init__(self, database: Database, kinds: Collection[FileKind], max_size: int) -> None:
        """`kinds`: which files are scanned, of at most so many bytes."""
        self._database = database
        self._kinds = frozenset(kinds)
        self._max_size = max_size

    async def get(self) -> tuple[Rescan | None, int]:
        """The last one, and how many contents are left to be scanned."""
        return await self._database.read("get_media_rescan", lambda txn: (_read(txn).last, _count_left(txn)))

    async def start(self, reason: Literal["signatures", "administrator"], now_ms: int, since_ms: int) -> Rescan | None:
        """Begin one; None where one is under way."""

        def write(txn: WriteTransaction) -> Rescan | None:
            note = _read(txn)
            if _is_under_way(note.last) and now_ms < note.last.began_ts + LONGEST_MS:
                return None
            last = Rescan(reason=reason, began_ts=now_ms, since_ts=since_ms)
            _write(txn, msgspec.structs.replace(note, is_due=False, last=last))
            return last

        return await self._database.write("start_media_rescan", write)

    async def note_version(self, version: str) -> bool:
        """The scanners say that they have this version; whether they had another before, with no rescan since."""

        def write(txn: WriteTransaction) -> bool:
            note = _read(txn)
            is_due = note.is_due or (note.version is not None and note.version != version)
            if (note.version, note.is_due) != (version, is_due):
                _write(txn, msgspec.structs.replace(note, version=version, is_due=is_due))
            return is_due

        return await self._database.write("note_scanner_version", write)

    async def mark(self, limit: int, now_ms: int) -> int:
        """Mark contents, looking at so many; how many were looked at. Notes also when all that was marked is scanned."""
        return await self._database.write("mark_media_rescan", self._mark, limit, now_ms)

    def count_found(self, txn: WriteTransaction, hash: bytes) -> None:
        """A content was found harmful that was known before: count it where it was marked."""
        row = txn.query_one("SELECT wanted FROM media_scans WHERE digest = ?", (hash,))
        note = _read(txn)
        if row is not None and row[0] == Wanted.AGAIN and note.last is not None:
            _write(
                txn, msgspec.structs.replace(note, last=msgspec.structs.replace(note.last, found=note.last.found + 1))
            )

    def _mark(self, txn: WriteTransaction, limit: int, now_ms: int) -> int:
        note = _read(txn)
        last = note.last
        if not _is_under_way(last):
            return 0
        if last.is_marked:
            if not _count_left(txn):
                _write(txn, msgspec.structs.replace(note, last=msgspec.structs.replace(last, ended_ts=now_ms)))
            return 0
        rows = self._select(txn, bytes.fromhex(last.after), limit)
        wanted = [hash for hash, created_ts, size in rows if created_ts >= last.since_ts and size <= self._max_size]
        known = {
            bytes(row[0]): ScanState(row[1])
            for row in txn.query_in("SELECT digest, state FROM media_scans WHERE digest IN {keys}", wanted)
        }
        clean = [hash for hash in wanted if known.get(hash) is ScanState.CLEAN]
        new = [hash for hash in wanted if hash not in known]
        txn.execute_many(
            f"UPDATE media_scans SET wanted = {Wanted.AGAIN:d}, until_ts = 0 WHERE digest = ?",
            [(hash,) for hash in clean],
        )
        txn.execute_many(
            "INSERT INTO media_scans (digest, hash, state, version, scanned_ts, wanted, until_ts)"
            f" VALUES (?, ?, {ScanState.UNKNOWN:d}, '', 0, {Wanted.AGAIN:d}, 0)",
            [(hash, hash) for hash in new],
        )
        changed = msgspec.structs.replace(
            last,
            after=rows[-1][0].hex() if rows else last.after,
            is_marked=len(rows) < limit,
            total=last.total + len(clean) + len(new),
        )
        _write(txn, msgspec.structs.replace(note, last=changed))
        return len(rows)

    def _select(self, txn: Transaction, after: bytes, limit: int) -> list[tuple[bytes, int, int]]:
        """Contents after a hash, in order: when the latest file with it has come, and how long it is."""
        tables = []
        if {"local", "previews"} <= self._kinds:
            tables.append(("media", ""))
        elif "local" in self._kinds:
            tables.append(("media", " AND user_id <> ''"))
        elif "previews" in self._kinds:
            tables.append(("media", " AND user_id = ''"))
        if "remote" in self._kinds:
            tables.append(("remote_media", ""))
        found: dict[bytes, tuple[bytes, int, int]] = {}
        for table, condition in tables:
            rows: list[Row] = txn.query(
                f"SELECT hash, MAX(created_ts), MAX(size) FROM {table} WHERE hash > ?{condition}"
                " GROUP BY hash ORDER BY hash LIMIT ?",
                (after, limit),
            )
            for hash, created_ts, size in rows:
                other = found.get(bytes(hash), (b"", 0, 0))
                found[bytes(hash)] = (bytes(hash), max(int(created_ts), other[1]), int(size))
        return sorted(found.values())[:limit]


def _is_under_way(last: Rescan | None) -> TypeGuard[Rescan]:
    return last is not None and last.ended_ts is None


def _read(txn: Transaction) -> _Note:
    text = select_note(txn, _NOTE)
    return _Note() if text is None else msgspec.json.decode(text, type=_Note)


def _write(txn: WriteTransaction, note: _Note) -> None:
    put_note(txn, _NOTE, msgspec.json.encode(note).decode())


def _count_left(txn: Transaction) -> int:
    row = txn.query_one(f"SELECT COUNT(*) FROM media_scans WHERE wanted = {Wanted.AGAIN:d} AND wanted > 0")
    return 0 if row is None else int(row[0])
