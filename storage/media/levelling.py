"""Brings folder and object store to what their roles want of them, and keeps the folder as small as
it may be.

Each is a step of a job: what is done is not found again, so that a job that was interrupted goes on
where it was. spec of the roles: `storage.media.shared_contents`.
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
from storage.media.objects import MediaObjectStore, StoredObject
from storage.media.shared_contents import SharedContents

FOLDERS: Final = 256
LOOKED_AT: Final = 1000
"""Contents of which one query finds out whether they are in the store."""
LOOKS: Final = 100
"""Such queries in one step: where all is moved already, a walk through a million files takes ten
steps."""
TELL_SECONDS: Final = 60.0
"""Between two lines in the log about how far it is."""
GRAIN_SECONDS: Final = 3600
"""How exactly the age of a file in the folder counts."""


class Levelling:
    """Moves contents between the two, in walks through all of them, in the order of their
    hashes."""

    log = Logger()

    def __init__(self, database: Database, contents: SharedContents, clock: IReactorTime) -> None:
        self._database = database
        self._contents = contents
        self._clock = clock
        self._table = MediaObjectStore(database)
        self._after = b""
        self._failed: bytes | None = None
        """What could not be moved when it was tried last."""
        self._moved = 0
        """In this walk."""
        self._tell_at = 0.0
        self._is_told = False

    async def do_level(self, limit: int) -> int:
        """Move at most so many contents to where they belong; how many. A job does it. Raises
        OSError."""
        lately = await self._send_lately(limit)
        if lately == limit:
            return lately
        limit -= lately
        if self._contents.role == "retired":
            done = await self._bring_back(limit)
        else:
            done = await self._send(limit)
        self._moved += done
        if not self._after:
            await self._end_walk()
        elif done and self._clock.seconds() >= self._tell_at:
            await self._tell()
        return lately + done

    async def _end_walk(self) -> None:
        if self._moved:
            await self._tell()
            self._moved = 0
            self._is_told = False
        elif not self._is_told:
            self._is_told = True
            self.log.info("every file is where media_object_store.role wants it")

    async def _send_lately(self, limit: int) -> int:
        """Write objects for what came since the last step. What fails is found by the walk."""
        missing = await self._table.get_missing_of(self._contents.take_lately(limit))
        for hash, size in missing:
            await self._write(hash, size)
        return len(missing)

    async def _send(self, limit: int) -> int:
        """Write objects for contents that have none."""
        done = 0
        for _ in range(LOOKS):
            missing = await self._table.get_missing(self._after, LOOKED_AT)
            for hash, size in missing.found[: limit - done]:
                await self._move(hash, partial(self._write, hash, size))
            done += min(len(missing.found), limit - done)
            if done == limit and missing.found:
                break
            self._after = missing.last or b""
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
            await self._database.write("note_media_object", self._note, name, hash)

    async def _move(self, hash: bytes, work: Callable[[], Awaitable[None]]) -> None:
        """Do it, and note that it is done. What fails twice does not keep the others from being
        moved in this walk."""
        try:
            await work()
        except OSError:
            if hash == self._failed:
                self._after = hash
            self._failed = hash
            raise
        self._after = hash

    def _note(self, txn: WriteTransaction, name: str, hash: bytes) -> None:
        """The object is there; one that nobody wants by now goes again."""
        self._table.set_here(txn, name, hash)
        self._table.set_leaving(txn, {hash} - select_used_hashes(txn, (hash,)))

    async def _bring_back(self, limit: int) -> int:
        """Take contents out of the store, into the folder."""
        some = await self._table.get_some(self._after, limit)
        used = await MediaStore(self._database).get_used_hashes({each.hash for each in some})
        for each in some:
            await self._move(each.hash, partial(self._take_back, each, is_used=each.hash in used))
        await self._contents.do_take_away(limit)
        if len(some) < limit:
            self._after = (
                b""  # from the beginning next time: what could not be moved is tried again
            )
        return len(some)

    async def _take_back(self, found: StoredObject, *, is_used: bool) -> None:
        if not is_used or await self._contents.bring_back(found):
            await self._database.write("retire_media_object", self._retire, found)

    def _retire(self, txn: WriteTransaction, found: StoredObject) -> None:
        self._table.set_leaving(txn, {found.hash})

    async def _tell(self) -> None:
        """How far it is. All files are counted for that: so not after each step."""
        self._tell_at = self._clock.seconds() + TELL_SECONDS
        every, there = await self._table.count()
        self.log.info(
            "{there} of {every} files are in the object store, {there_bytes} of {every_bytes} bytes",
            there=there.contents,
            every=every.contents,
            there_bytes=there.bytes,
            every_bytes=every.bytes,
        )


class Trimming:
    """Walks the folder again and again: takes away what nobody has any more (another node may have
    removed it), and, beyond `most_bytes`, what was not read for longest and is in the store. By
    which age is reckoned in one walk, for the next.
    """

    def __init__(self, database: Database, files: MediaFiles, most_bytes: int | None) -> None:
        """`most_bytes`: None for as many as come."""
        self._database = database
        self._files = files
        self._table = MediaObjectStore(database)
        self._rows = MediaStore(database)
        self._most_bytes = most_bytes
        self._next = 0
        self._bytes_by_age: Counter[int] = Counter()
        self._oldest = 0
        """What was read before this (in grains since 1970) goes."""

    async def do_trim(self, limit: int) -> int:
        """Look at so many of the folder's 256 parts; how many were looked at. A job does it."""
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
        kept = await self._files.list_some(number)
        hashes = {each.hash for each in kept} | await self._files.list_thumbnails(number)
        unused = await self._unused(hashes)
        if unused:
            await self._files.remove_unused(unused, lambda: self._unused(unused))
        old = {each.hash for each in kept if each.read // GRAIN_SECONDS < self._oldest} - unused
        if old and self._most_bytes is not None:
            await self._files.evict(await self._table.get_objects(old))
        for each in kept:
            self._bytes_by_age[int(each.read // GRAIN_SECONDS)] += each.size

    async def _unused(self, hashes: Set[bytes]) -> Set[bytes]:
        return hashes - await self._rows.get_used_hashes(hashes)

    def _find_oldest(self) -> int:
        if self._most_bytes is None:
            return 0
        left = self._most_bytes
        for age in sorted(self._bytes_by_age, reverse=True):
            left -= self._bytes_by_age[age]
            if left < 0:
                return age + 1
        return 0
