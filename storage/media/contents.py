"""The bytes of files, by their SHA-256. Files with equal bytes share one *content*, stored once.

`MediaContents` is the interface. `LocalContents` stores contents only in a folder. Through this
interface, callers change rows and bytes together:
- `add`: first the bytes become durable. Then the function `write`, which the caller passes, adds
  the row in its transaction. If `write` fails, neither is stored.
- `remove_unused`: the function `remove_rows`, which the caller passes, deletes rows in a
  transaction and returns the contents that no row uses any more. Then their bytes are deleted.

After a crash between these steps, `MediaFiles.sweep` deletes contents without a row. It runs at
start-up and as a job. Outside this package, no code deletes bytes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Set
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.media.files import MediaFiles, OpenedFile, ReadableBytes, StoredThumbnail
from storage.media.spool import Spool

T = TypeVar("T")


class OpenedContent(Protocol):
    """A content that is open for reading, as the source of a response. The receiver closes it."""

    @property
    def size(self) -> int:
        """The size in bytes."""

    def read(self, offset: int, size: int) -> Awaitable[bytes]:
        """Return up to `size` bytes from `offset` on; fewer at the end. Raises OSError."""
        ...

    def close(self) -> None:
        """Close the content. A running read fails, and its error is not reported."""


class MediaContents(Protocol):
    """Stores and returns the bytes of files."""

    def spool(self, memory_bytes: int) -> Spool:
        """Return a buffer for bytes that later go to `add`: at most `memory_bytes` are in memory,
        the rest is on disk."""
        ...

    async def add(
        self, source: ReadableBytes, write: Callable[[WriteTransaction, bytes, int], T]
    ) -> T:
        """Store the rest of `source` durably; then run `write` (hash, size) in a transaction and
        return its result.

        If `write` raises, the content is not added. Raises its error, and OSError.
        """
        ...

    async def open(self, hash: bytes) -> OpenedContent | None:
        """Open a content for reading; None if it does not exist. Raises OSError."""
        ...

    def lend(self, hash: bytes) -> AbstractAsyncContextManager[Path | None]:
        """Provide a content as a local file within the context; None if it does not exist. Raises
        OSError."""
        ...

    async def get_url(self, hash: bytes, type: str, disposition: str) -> str | None:
        """Return a URL where anybody can fetch a content for some minutes, with these headers; None
        if only this server serves it."""
        ...

    async def remove_unused(
        self, hashes: Set[bytes], remove_rows: Callable[[WriteTransaction], Set[bytes]]
    ) -> Set[bytes] | None:
        """Delete contents: `remove_rows` deletes rows, and returns those of `hashes` that no row
        uses any more.

        Returns these after their bytes and thumbnails are deleted. None: other processes are
        writing, so nothing was done and `remove_rows` was not called; retry. Raises the error of
        `remove_rows`, and OSError.
        """
        ...

    async def get_thumbnail(self, hash: bytes, name: str) -> StoredThumbnail | None:
        """Return the thumbnail of a content with this name, or None. Raises OSError."""
        ...

    async def set_thumbnail(self, hash: bytes, name: str, data: bytes, max_thumbnails: int) -> None:
        """Store a thumbnail of a content, unless it has `max_thumbnails` already. Raises
        OSError."""
        ...


class LocalContents:
    """Stores contents only in a folder of this machine."""

    def __init__(self, *, database: Database, files: MediaFiles) -> None:
        self._database = database
        self._files = files

    def spool(self, memory_bytes: int) -> Spool:
        return self._files.spool(memory_bytes)

    async def add(
        self, source: ReadableBytes, write: Callable[[WriteTransaction, bytes, int], T]
    ) -> T:
        stored = await self._files.add(source)
        try:
            result = await self._database.write("add_media", write, stored.hash, stored.size)
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

    async def get_url(self, hash: bytes, type: str, disposition: str) -> str | None:
        return None

    async def remove_unused(
        self, hashes: Set[bytes], remove_rows: Callable[[WriteTransaction], Set[bytes]]
    ) -> Set[bytes] | None:
        return await self._files.remove_unused(
            hashes, lambda: self._database.write("remove_media", remove_rows)
        )

    async def get_thumbnail(self, hash: bytes, name: str) -> StoredThumbnail | None:
        return await self._files.get_thumbnail(hash, name)

    async def set_thumbnail(self, hash: bytes, name: str, data: bytes, max_thumbnails: int) -> None:
        await self._files.set_thumbnail(hash, name, data, max_thumbnails)
        # A remover deletes the content, then its thumbnails: either it sees this one, or this check
        # sees that the content is gone
        if not await self._files.has(hash):
            await self._files.remove_thumbnails(hash)
