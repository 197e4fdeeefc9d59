"""Moves contents between the folder and the object store, and limits the size of the folder.

Where contents belong depends on the configured role of the object store, such as `main`
(`storage.media.shared_contents`). Jobs call the classes step by step. Each step looks for contents
that are not yet where they belong, so an interruption loses nothing.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Set
from functools import partial
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.media.files import MediaFiles
from storage.media.media import MediaStore, select_used_hashes
from storage.media.object_store_journal import MediaObjectJournal, StoredObject
from storage.media.shared_contents import SharedContents

FOLDERS: Final = 256
CONTENTS_PER_QUERY: Final = 1000
"""Contents per query for missing objects."""
QUERIES_PER_STEP: Final = 100
"""Queries per step: once everything has been moved, a walk over a million files takes ten steps."""
LOG_SECONDS: Final = 60.0
"""Seconds between two log lines about the progress."""
AGE_RESOLUTION_SECONDS: Final = 3600
"""Resolution of the age of a file in the folder."""


class MediaRebalancer:
    """Moves contents between folder and store. It walks over all of them in the order of their
    hashes."""

    log = Logger()

    def __init__(
        self, *, database: Database, contents: SharedContents, clock: IReactorTime
    ) -> None:
        self._database = database
        self._contents = contents
        self._clock = clock
        self._table = MediaObjectJournal(database)
        self._walked_upto = b""
        self._failed: bytes | None = None
        """The content whose last move failed."""
        self._moved = 0
        """Moves in this walk."""
        self._log_at = 0.0
        self._is_logged = False

    async def rebalance(self, limit: int) -> int:
        """Move at most `limit` contents to where they belong. Return how many. Run by a job. Raises
        OSError."""
        recent = await self._send_recent(limit)
        if recent == limit:
            return recent
        limit -= recent
        if self._contents.role == "retired":
            done = await self._restore(limit)
        else:
            done = await self._send(limit)
        self._moved += done
        if not self._walked_upto:
            await self._end_walk()
        elif done and self._clock.seconds() >= self._log_at:
            await self._log_progress()
        return recent + done

    async def _end_walk(self) -> None:
        if self._moved:
            await self._log_progress()
            self._moved = 0
            self._is_logged = False
        elif not self._is_logged:
            self._is_logged = True
            self.log.info("every file is where media_object_store.role requires it")

    async def _send_recent(self, limit: int) -> int:
        """Write objects for contents added since the last step. The walk finds those that fail."""
        missing = await self._table.get_missing_of(self._contents.take_recent(limit))
        for hash, size in missing:
            await self._write(hash, size)
        return len(missing)

    async def _send(self, limit: int) -> int:
        """Write objects for contents without one."""
        done = 0
        for _ in range(QUERIES_PER_STEP):
            missing = await self._table.get_missing(self._walked_upto, CONTENTS_PER_QUERY)
            for hash, size in missing.found[: limit - done]:
                await self._move(hash, partial(self._write, hash, size))
            done += min(len(missing.found), limit - done)
            if done == limit and missing.found:
                break
            self._walked_upto = missing.last or b""
            if missing.last is None:
                break
        return done

    async def _write(self, hash: bytes, size: int) -> None:
        async with self._contents.lend(hash) as path:
            if path is None:
                self.log.error(
                    "the content {hash} is neither in the folder nor in the store", hash=hash.hex()
                )
                return
            name = await self._contents.write_object(path, hash, size)
            await self._database.write("record_media_object", self._record, name, hash)

    async def _move(self, hash: bytes, work: Callable[[], Awaitable[None]]) -> None:
        """Run the move and remember its success. A content that fails twice does not block the
        others in this walk."""
        try:
            await work()
        except OSError:
            if hash == self._failed:
                self._walked_upto = hash
            self._failed = hash
            raise
        self._walked_upto = hash

    def _record(self, txn: WriteTransaction, name: str, hash: bytes) -> None:
        """Record the object; it is removed again if no file uses its content by now."""
        self._table.set_stored(txn, name, hash)
        self._table.set_deleting(txn, {hash} - select_used_hashes(txn, (hash,)))

    async def _restore(self, limit: int) -> int:
        """Move contents from the store to the folder."""
        batch = await self._table.get_batch(self._walked_upto, limit)
        used = await MediaStore(self._database).get_used_hashes({each.hash for each in batch})
        for each in batch:
            await self._move(each.hash, partial(self._restore_one, each, is_used=each.hash in used))
        await self._contents.delete_unused_objects(limit)
        if len(batch) < limit:
            self._walked_upto = b""  # start again next time, to retry what could not be moved
        return len(batch)

    async def _restore_one(self, stored: StoredObject, *, is_used: bool) -> None:
        if not is_used or await self._contents.fetch_to_folder(stored):
            await self._database.write("retire_media_object", self._retire, stored)

    def _retire(self, txn: WriteTransaction, stored: StoredObject) -> None:
        self._table.set_deleting(txn, {stored.hash})

    async def _log_progress(self) -> None:
        """Log the progress. It counts all files, so not after each step."""
        self._log_at = self._clock.seconds() + LOG_SECONDS
        total, in_store = await self._table.count()
        self.log.info(
            "{in_store} of {total} files are in the object store,"
            " {in_store_bytes} of {total_bytes} bytes",
            in_store=in_store.contents,
            total=total.contents,
            in_store_bytes=in_store.bytes,
            total_bytes=total.bytes,
        )


class FolderTrimmer:
    """Walks over the folder continuously. Removes contents that no file uses (another node may have
    deleted the files). If the folder is larger than `max_bytes`, it also removes the least recently
    read contents that are in the store. One walk computes the age limit for the next."""

    def __init__(self, *, database: Database, files: MediaFiles, max_bytes: int | None) -> None:
        """`max_bytes`: None means no limit."""
        self._database = database
        self._files = files
        self._table = MediaObjectJournal(database)
        self._rows = MediaStore(database)
        self._max_bytes = max_bytes
        self._next = 0
        self._bytes_by_age: Counter[int] = Counter()
        self._oldest = 0
        """Contents last read before this (in grains since 1970) are removed."""

    async def trim(self, limit: int) -> int:
        """Check `limit` of the folder's 256 parts. Return how many were checked. Run by a job."""
        for count in range(1, limit + 1):
            await self._trim(self._next)
            self._next += 1
            if self._next == FOLDERS:
                self._next = 0
                self._oldest = self._find_oldest()
                self._bytes_by_age.clear()
                return min(count, limit - 1)
        return limit

    async def _trim(self, number: int) -> None:
        files = await self._files.list_contents(number)
        hashes = {each.hash for each in files} | await self._files.list_thumbnails(number)
        unused = await self._unused(hashes)
        if unused:
            await self._files.remove_unused(unused, lambda: self._unused(unused))
        old = {
            each.hash for each in files if each.read // AGE_RESOLUTION_SECONDS < self._oldest
        } - unused
        if old and self._max_bytes is not None:
            await self._files.evict(await self._table.get_objects(old))
        for each in files:
            self._bytes_by_age[int(each.read // AGE_RESOLUTION_SECONDS)] += each.size

    async def _unused(self, hashes: Set[bytes]) -> Set[bytes]:
        return hashes - await self._rows.get_used_hashes(hashes)

    def _find_oldest(self) -> int:
        if self._max_bytes is None:
            return 0
        remaining = self._max_bytes
        for age in sorted(self._bytes_by_age, reverse=True):
            remaining -= self._bytes_by_age[age]
            if remaining < 0:
                return age + 1
        return 0
