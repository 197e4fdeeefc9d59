"""Scanning again what was scanned before: which contents, how far it is, and when the next time
comes.

The contents are marked in the order of their hashes, some in each write, with how far that is in
the same write: so it goes on where it was, whatever dies when. What is marked is scanned like what
is new, and after it (`storage/media/scans.py`).
"""

from collections.abc import Collection, Iterator
from typing import Final, Literal, TypeGuard

import msgspec

from storage.cluster.job_progress import put_note, select_note
from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.scans import ScanState, Wanted

LONGEST_MS: Final = 30 * 24 * 3600 * 1000
"""After so long one that has not ended is taken for stuck, and another may begin."""
NEVER_MS: Final = -1
"""When a file has come that is not to be scanned: before any time from which on they are."""
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
        return await self._database.read(
            "get_media_rescan", lambda txn: (_read(txn).last, _count_left(txn))
        )

    async def start(
        self, reason: Literal["signatures", "administrator"], now_ms: int, since_ms: int
    ) -> Rescan | None:
        """Begin one; None where one is under way."""

        def write(txn: WriteTransaction) -> Rescan | None:
            note = _read(txn)
            if _is_under_way(note.last) and now_ms < note.last.began_ts + LONGEST_MS:
                return None
            last = Rescan(reason=reason, began_ts=now_ms, since_ts=max(since_ms, 0))
            _write(txn, msgspec.structs.replace(note, is_due=False, last=last))
            return last

        return await self._database.write("start_media_rescan", write)

    async def note_version(self, version: str) -> bool:
        """The scanners say that they have this version; whether they had another before, with no
        rescan since."""

        def write(txn: WriteTransaction) -> bool:
            note = _read(txn)
            is_due = note.is_due or (note.version is not None and note.version != version)
            if (note.version, note.is_due) != (version, is_due):
                _write(txn, msgspec.structs.replace(note, version=version, is_due=is_due))
            return is_due

        return await self._database.write("note_scanner_version", write)

    async def mark(self, limit: int, now_ms: int) -> int:
        """Mark contents, looking at so many; how many were looked at. Notes also when all that was
        marked is scanned."""
        return await self._database.write("mark_media_rescan", self._mark, limit, now_ms)

    def count_found(self, txn: WriteTransaction, hash: bytes) -> None:
        """A content was found harmful that was known before: count it where it was marked."""
        row = txn.query_one("SELECT wanted FROM media_scans WHERE digest = ?", (hash,))
        note = _read(txn)
        if row is not None and row[0] == Wanted.AGAIN and note.last is not None:
            _write(
                txn,
                msgspec.structs.replace(
                    note, last=msgspec.structs.replace(note.last, found=note.last.found + 1)
                ),
            )

    def _mark(self, txn: WriteTransaction, limit: int, now_ms: int) -> int:
        note = _read(txn)
        last = note.last
        if not _is_under_way(last):
            return 0
        if last.is_marked:
            if not _count_left(txn):
                _write(
                    txn,
                    msgspec.structs.replace(
                        note, last=msgspec.structs.replace(last, ended_ts=now_ms)
                    ),
                )
            return 0
        rows = self._select(txn, bytes.fromhex(last.after), limit)
        wanted = [
            hash
            for hash, created_ts, size in rows
            if created_ts >= last.since_ts and size <= self._max_size
        ]
        known = {
            bytes(row[0]): ScanState(row[1])
            for row in txn.query_in(
                "SELECT digest, state FROM media_scans WHERE digest IN {keys}", wanted
            )
        }
        clean = [hash for hash in wanted if known.get(hash) is ScanState.CLEAN]
        new = [hash for hash in wanted if hash not in known]
        waiting = [hash for hash in wanted if known.get(hash) is ScanState.UNKNOWN]
        txn.execute_many(
            f"UPDATE media_scans SET wanted = {Wanted.AGAIN:d}, until_ts = 0 WHERE digest = ?",
            [(hash,) for hash in clean],
        )
        txn.execute_many(
            "INSERT INTO media_scans (digest, hash, state, version, scanned_ts, wanted, until_ts)"
            f" VALUES (?, ?, {ScanState.UNKNOWN:d}, '', 0, {Wanted.AGAIN:d}, 0)",
            [(hash, hash) for hash in new],
        )
        # What could not be scanned until now may be possible since: it has its turn without a pause
        txn.execute_many(
            "UPDATE media_scans SET failures = 0, until_ts = 0 WHERE digest = ? AND failures > 0",
            [(hash,) for hash in waiting],
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
        """The contents after a hash, in order, whosever they are: when the latest file has come
        that is to be scanned, if any is, and how long it is.

        All are walked by their hash, and so many at a time: were those of other kinds passed over
        by the database, one step could read a whole table.
        """
        found: dict[bytes, tuple[bytes, int, int]] = {}
        for table, created_ts in self._tables():
            rows: list[Row] = txn.query(
                f"SELECT hash, MAX({created_ts}), MAX(size) FROM {table} WHERE hash > ? GROUP BY hash ORDER BY hash LIMIT ?",
                (after, limit),
            )
            for hash, latest, size in rows:
                other = found.get(bytes(hash), (b"", NEVER_MS, 0))
                found[bytes(hash)] = (bytes(hash), max(int(latest), other[1]), int(size))
        return sorted(found.values())[:limit]

    def _tables(self) -> Iterator[tuple[str, str]]:
        """Those with files that are to be scanned, and an expression for when such a file has
        come."""
        of_kind = {"local": "user_id <> ''", "previews": "user_id = ''"}
        wanted = [condition for kind, condition in of_kind.items() if kind in self._kinds]
        if wanted:
            yield "media", f"CASE WHEN {' OR '.join(wanted)} THEN created_ts ELSE {NEVER_MS} END"
        if "remote" in self._kinds:
            yield "remote_media", "created_ts"


def _is_under_way(last: Rescan | None) -> TypeGuard[Rescan]:
    return last is not None and last.ended_ts is None


def _read(txn: Transaction) -> _Note:
    text = select_note(txn, _NOTE)
    return _Note() if text is None else msgspec.json.decode(text, type=_Note)


def _write(txn: WriteTransaction, note: _Note) -> None:
    put_note(txn, _NOTE, msgspec.json.encode(note).decode())


def _count_left(txn: Transaction) -> int:
    row = txn.query_one(
        f"SELECT COUNT(*) FROM media_scans WHERE wanted = {Wanted.AGAIN:d} AND wanted > 0"
    )
    return 0 if row is None else int(row[0])
