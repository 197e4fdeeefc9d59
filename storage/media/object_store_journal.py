"""The journal of the object store: which contents are stored, being uploaded, or being deleted.

Each row describes one object, and passes through these states:

    uploading   from before the object is written
    stored      from the transaction that adds the first file with this content; if a job writes the
                object later, from a transaction of the job
    deleting    from the transaction that deletes the last file with this content, or when the
                object is not needed in the store any more
    no row      after the object is deleted

The process that uploads an object renews its row. An `uploading` row that is not renewed in time
becomes `deleting`. If the process is still alive, it notices this when it tries to set `stored`.
"""

from collections.abc import Iterable, Mapping, Sequence, Set

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class StoredObject(msgspec.Struct, frozen=True):
    """An object in the store. `size` in bytes."""

    name: str
    hash: bytes
    size: int


class DeletingObject(msgspec.Struct, frozen=True):
    """An object to be deleted. `is_complete`: False if it may be incomplete."""

    name: str
    is_complete: bool


class ContentTotals(msgspec.Struct, frozen=True):
    """A number of contents, and their bytes."""

    contents: int
    bytes: int


class MissingObjects(msgspec.Struct, frozen=True):
    """Contents that are in no object."""

    found: Sequence[tuple[bytes, int]]
    """Hashes and sizes, in order."""
    last: bytes | None
    """The last hash that was read; None at the end."""


class MediaObjectJournal:
    """Reads and writes the table `media_objects`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_objects(self, hashes: Iterable[bytes]) -> Mapping[bytes, StoredObject]:
        """Return the objects of those contents that have one."""
        return await self._database.read_quickly("get_media_objects", _select_stored, tuple(hashes))

    async def add_uploading(self, name: str, hash: bytes, size: int, until_ms: int) -> None:
        """Record that an object will be written, under a new name."""
        await self._database.write("add_media_object", _add_uploading, name, hash, size, until_ms)

    async def renew(self, name: str, until_ms: int) -> None:
        """Record that the object is still being written."""
        await self._database.write("renew_media_object", _renew, name, until_ms)

    def set_stored(self, txn: WriteTransaction, name: str, hash: bytes) -> bool:
        """Record that the object is written. If another object with this content is stored already,
        keep that one and mark this one for deletion.

        Return False if the row was not renewed in time: then the object is being deleted.
        """
        if self.is_stored(txn, hash):
            txn.execute(
                "UPDATE media_objects SET state = 'deleting', leased_until = 0 WHERE name = ?",
                (name,),
            )
            return True
        sql = (
            "UPDATE media_objects SET state = 'stored', leased_until = 0"
            " WHERE name = ? AND state = 'uploading'"
        )
        return txn.execute(sql, (name,)) > 0

    def is_stored(self, txn: Transaction, hash: bytes) -> bool:
        """Whether there is an object with this content."""
        return bool(_select_stored(txn, (hash,)))

    def set_deleting(self, txn: WriteTransaction, hashes: Set[bytes]) -> None:
        """Mark the objects of unused contents for deletion."""
        txn.execute_many(
            "UPDATE media_objects SET state = 'deleting' WHERE hash = ? AND state = 'stored'",
            [(hash,) for hash in sorted(hashes)],
        )

    async def take_deleting(self, now_ms: int, after: str, limit: int) -> Sequence[DeletingObject]:
        """Return at most `limit` objects to delete, in the order of their names, after `after`.
        Includes those not written in time."""
        return await self._database.write(
            "claim_deleted_media_objects", _take_deleting, now_ms, after, limit
        )

    async def get_deleting_of(self, hashes: Set[bytes]) -> Sequence[DeletingObject]:
        """Return objects with these contents that are to be deleted."""
        return await self._database.read(
            "get_deleted_media_objects_of", _select_deleting_of, tuple(hashes)
        )

    async def remove(self, names: Sequence[str]) -> None:
        """Delete the rows of deleted objects."""
        await self._database.write("remove_media_objects", _remove, tuple(names))

    async def get_missing(self, after: bytes, limit: int) -> MissingObjects:
        """Read `limit` contents in the order of their hashes, after `after`, and return those
        without an object."""
        return await self._database.read("get_missing_media_objects", _select_missing, after, limit)

    async def get_missing_of(self, hashes: Set[bytes]) -> Sequence[tuple[bytes, int]]:
        """Return those of the contents that files have and that are in no object: hashes and sizes,
        in order."""
        return await self._database.read(
            "get_missing_media_objects_of", _select_missing_of, tuple(hashes)
        )

    async def get_batch(self, after: bytes, limit: int) -> Sequence[StoredObject]:
        """Return at most `limit` objects in the order of their hashes, after `after`."""
        return await self._database.read("get_media_object_batch", _select_batch, after, limit)

    async def count(self) -> tuple[ContentTotals, ContentTotals]:
        """Count all contents of files, and those in objects."""
        return await self._database.read("count_media_objects", _count)


def _select_stored(txn: Transaction, hashes: tuple[bytes, ...]) -> Mapping[bytes, StoredObject]:
    rows = txn.query_in(
        "SELECT name, hash, size FROM media_objects WHERE state = 'stored' AND hash IN {keys}",
        hashes,
    )
    return {bytes(row[1]): StoredObject(row[0], bytes(row[1]), row[2]) for row in rows}


def _add_uploading(txn: WriteTransaction, name: str, hash: bytes, size: int, until_ms: int) -> None:
    txn.execute(
        "INSERT INTO media_objects (name, hash, size, state, leased_until)"
        " VALUES (?, ?, ?, 'uploading', ?)",
        (name, hash, size, until_ms),
    )


def _renew(txn: WriteTransaction, name: str, until_ms: int) -> None:
    txn.execute(
        "UPDATE media_objects SET leased_until = ? WHERE name = ? AND state = 'uploading'",
        (until_ms, name),
    )


def _take_deleting(
    txn: WriteTransaction, now_ms: int, after: str, limit: int
) -> Sequence[DeletingObject]:
    txn.execute(
        "UPDATE media_objects SET state = 'deleting' WHERE state = 'uploading'"
        " AND leased_until < ?",
        (now_ms,),
    )
    sql = (
        "SELECT name, leased_until FROM media_objects WHERE state = 'deleting' AND name > ?"
        " ORDER BY name LIMIT ?"
    )
    return [DeletingObject(row[0], row[1] == 0) for row in txn.query(sql, (after, limit))]


def _select_deleting_of(txn: Transaction, hashes: tuple[bytes, ...]) -> Sequence[DeletingObject]:
    rows = txn.query_in(
        "SELECT name, leased_until FROM media_objects WHERE state = 'deleting' AND hash IN {keys}",
        hashes,
    )
    return [DeletingObject(row[0], row[1] == 0) for row in rows]


def _remove(txn: WriteTransaction, names: tuple[str, ...]) -> None:
    txn.execute_many(
        "DELETE FROM media_objects WHERE name = ? AND state = 'deleting'",
        [(name,) for name in names],
    )


def _select_missing(txn: Transaction, after: bytes, limit: int) -> MissingObjects:
    # Not the missing ones alone: the database would walk all others to find the next
    seen: dict[bytes, int] = {}
    for table in ("media", "remote_media"):
        sql = (
            f"SELECT hash, MAX(size) FROM {table} WHERE hash > ? GROUP BY hash"
            " ORDER BY hash LIMIT ?"
        )
        seen.update((bytes(hash), int(size)) for hash, size in txn.query(sql, (after, limit)))
    contents = sorted(seen.items())[:limit]
    here = _select_stored(txn, tuple(hash for hash, _ in contents))
    last = contents[-1][0] if len(contents) == limit else None
    return MissingObjects([each for each in contents if each[0] not in here], last)


def _select_missing_of(txn: Transaction, hashes: tuple[bytes, ...]) -> Sequence[tuple[bytes, int]]:
    sizes = {
        bytes(row[0]): int(row[1])
        for table in ("media", "remote_media")
        for row in txn.query_in(f"SELECT hash, size FROM {table} WHERE hash IN {{keys}}", hashes)
    }
    here = _select_stored(txn, tuple(sizes))
    return sorted((hash, size) for hash, size in sizes.items() if hash not in here)


def _select_batch(txn: Transaction, after: bytes, limit: int) -> Sequence[StoredObject]:
    sql = (
        "SELECT name, hash, size FROM media_objects WHERE hash > ? AND state = 'stored'"
        " ORDER BY hash LIMIT ?"
    )
    return [StoredObject(row[0], bytes(row[1]), row[2]) for row in txn.query(sql, (after, limit))]


def _count(txn: Transaction) -> tuple[ContentTotals, ContentTotals]:
    total = txn.query_one(
        "SELECT COUNT(*), COALESCE(SUM(size), 0) FROM (SELECT hash, size FROM media"
        " WHERE hash IS NOT NULL "
        "UNION SELECT hash, size FROM remote_media) AS contents"
    )
    stored = txn.query_one(
        "SELECT COUNT(*), COALESCE(SUM(size), 0) FROM media_objects WHERE state = 'stored'"
    )
    assert total is not None
    assert stored is not None
    return ContentTotals(int(total[0]), int(total[1])), ContentTotals(
        int(stored[0]), int(stored[1])
    )
