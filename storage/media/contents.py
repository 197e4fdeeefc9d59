"""The bytes of files, each content once, by its SHA-256: what the rest of the server knows of where
they are.

`Contents` is the interface; `LocalContents` keeps them in a folder alone. Rows and bytes are
changed through it together:

- `add`: bytes durable, then the row, in one transaction that `write` fills. Fails `write`, there is
  neither.
- `remove_unused`: `forget` removes rows and says, in the same transaction, of which contents nobody
  has any more. Only then bytes go. Nobody else may take bytes away.

After a crash between these, `sweep` (at the start, and by a job) takes away what has no row.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Set
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.media.files import KeptThumbnail, MediaFiles, OpenedFile, ReadableBytes
from storage.media.spool import Spool

T = TypeVar("T")


class OpenedContent(Protocol):
    """A content that is open for reading: a source for an answer. Who has it closes it."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, size: int) -> Awaitable[bytes]:
        """From there on so many bytes; fewer at the end. Raises OSError."""
        ...

    def close(self) -> None:
        """A read that is under way ends with an error, which nobody hears."""


class Contents(Protocol):
    """Keeps and gives out the bytes of files."""

    def spool(self, memory_bytes: int) -> Spool:
        """For what arrives and goes on to `add`: so many bytes of it are in memory, the rest is on
        the disk of the store."""
        ...

    async def add(
        self, source: ReadableBytes, write: Callable[[WriteTransaction, bytes, int], T]
    ) -> T:
        """Keep what is left of `source`, durably; then run `write` (hash, size) in a transaction,
        and return what it does.

        Where `write` raises, nobody has the bytes through this. Raises what it raised, and OSError.
        """
        ...

    async def open(self, hash: bytes) -> OpenedContent | None:
        """A content for reading; None when it is not there. Raises OSError."""
        ...

    def lend(self, hash: bytes) -> AbstractAsyncContextManager[Path | None]:
        """A content as a file on this machine, to be read while the context lasts; None when it is
        not there. Raises OSError."""
        ...

    async def get_address(self, hash: bytes, type: str, disposition: str) -> str | None:
        """Where whoever is told may fetch a content for some minutes, with these headers; None if
        only from here."""
        ...

    async def remove_unused(
        self, hashes: Set[bytes], forget: Callable[[WriteTransaction], Set[bytes]]
    ) -> Set[bytes] | None:
        """Take away contents: `forget` removes rows, and returns those of `hashes` that no row has
        any more.

        Returns these, when their bytes and their thumbnails are gone. None: others are writing, so
        nothing was done, and `forget` was not called; try again. Raises what `forget` raised, and
        OSError.
        """
        ...

    async def get_thumbnail(self, hash: bytes, name: str) -> KeptThumbnail | None:
        """What was made of a content under this name. Raises OSError."""
        ...

    async def set_thumbnail(self, hash: bytes, name: str, data: bytes, at_most: int) -> None:
        """Keep what was made of a content, unless there are so many already. Raises OSError."""
        ...


class LocalContents:
    """Contents in a folder of this machine, and nowhere else."""

    def __init__(self, database: Database, files: MediaFiles) -> None:
        self._database = database
        self._files = files

    def spool(self, memory_bytes: int) -> Spool:
        return self._files.spool(memory_bytes)

    async def add(
        self, source: ReadableBytes, write: Callable[[WriteTransaction, bytes, int], T]
    ) -> T:
        stored = await self._files.add(source)
        try:
            result = await self._database.write("keep_media", write, stored.hash, stored.size)
        except BaseException:
            self._files.abandon(stored)
            raise
        await self._files.settle(stored)
        return result

    async def open(self, hash: bytes) -> OpenedFile | None:
        return await self._files.open(hash)

    @asynccontextmanager
    async def lend(self, hash: bytes) -> AsyncIterator[Path | None]:
        with self._files.lend(hash) as path:
            yield path

    async def get_address(self, hash: bytes, type: str, disposition: str) -> str | None:
        return None

    async def remove_unused(
        self, hashes: Set[bytes], forget: Callable[[WriteTransaction], Set[bytes]]
    ) -> Set[bytes] | None:
        return await self._files.remove_unused(
            hashes, lambda: self._database.write("forget_media", forget)
        )

    async def get_thumbnail(self, hash: bytes, name: str) -> KeptThumbnail | None:
        return await self._files.get_thumbnail(hash, name)

    async def set_thumbnail(self, hash: bytes, name: str, data: bytes, at_most: int) -> None:
        await self._files.set_thumbnail(hash, name, data, at_most)
        # Who takes the content away takes its thumbnails after it: either they see this one, or it
        # is seen here
        if not await self._files.has(hash):
            await self._files.remove_thumbnails(hash)
