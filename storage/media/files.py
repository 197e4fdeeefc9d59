"""The media folder. It stores each content once, under its SHA-256.

    content/ab/cd/abcd…           a complete content; linked here when all its bytes are written
    thumbnails/ab/cd/abcd…/NAME   thumbnails of it; may be deleted at any time
    incoming/*.part               a file that a process is receiving, or a hard link to a content
                                  that it is reading; the process holds a lock on it
    incoming/HASH.*               a hard link to a content that is being added or removed
    lock, turn                    locks to add or remove contents (`storage/media/folder_lock.py`)

Laws:
- To add a content: write and sync the bytes, rename the file to `incoming/HASH.*`, link it into
  `content`, sync the folder, commit the row, remove the entry in `incoming`. After a crash at any
  point, `sweep` finds the entry in `incoming` and deletes the content if it has no row. So no row
  lacks its file, and after the next start no file lacks its row.
- To remove a content: add an entry in `incoming`, delete the rows, delete the content, remove the
  entry.
- Several processes may share the folder. A writer holds the shared lock until its row is committed.
  A remover needs the lock exclusively, or retries later.
- Slow work runs in the executor's threads. But a remover that holds the lock works on the reactor
  thread, because writers that wait for the lock may occupy all threads of the executor.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final, NamedTuple, Protocol
from uuid import uuid4

from twisted.internet.interfaces import IReactorTime

from storage.engine.executors import Executor, run_in
from storage.media.folder_lock import FolderLock, FolderMissing
from storage.media.spool import DetachedFile, DiskSpool

COPY_BYTES: Final = 1 << 18
READ_RESOLUTION_SECONDS: Final = 3600.0
"""Resolution of the time when a content was last read."""
FIRST_READ_BYTES: Final = 1 << 16
"""Bytes of a thumbnail that are read at once; the rest is read on demand."""


class ReadableBytes(Protocol):
    """A source of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most `size`; none at the end."""
        ...


class ReceivedFile:
    """Bytes on disk that are not linked into `content` yet. The owner has to call `discard` in the
    end."""

    def __init__(self, *, path: Path, hash: bytes, size: int, lock: int) -> None:
        self.path = path
        self.hash = hash
        self.size = size
        self.lock = lock


class ContentFile(NamedTuple):
    """A stored content. `read`: when it arrived or was last read, in seconds since 1970."""

    hash: bytes
    size: int
    read: float


class PlacedFile:
    """A content on disk whose row is not committed yet. After the commit, the owner calls `settle`,
    and the content stays."""

    def __init__(self, *, hash: bytes, size: int, entry: Path, lock: int) -> None:
        self.hash = hash
        self.size = size
        self.entry = entry
        self.lock = lock


class OpenedFile:
    """A content that is open for reading, as the source of a response."""

    def __init__(self, *, executor: Executor, file: FileIO, size: int) -> None:
        self.size = size
        self._executor = executor
        self._file = file

    def read(self, offset: int, size: int) -> Awaitable[bytes]:
        """Return up to `size` bytes from `offset` on; fewer at the end."""
        return run_in(self._executor, lambda: os.pread(self._file.fileno(), size, offset))

    def close(self) -> None:
        """Close the file. A running read fails, and its error is not reported."""
        self._file.close()


class StoredThumbnail(NamedTuple):
    """A stored thumbnail. The receiver closes `file`."""

    beginning: bytes
    file: OpenedFile | None
    """The complete thumbnail; None if `beginning` has all of it."""
    made: float
    """When it was made, in seconds since 1970."""


class MediaFiles:
    """The media folder. Call `open_folder` first."""

    def __init__(
        self, *, folder: Path, executor: Executor, clock: IReactorTime, min_free_bytes: int = 0
    ) -> None:
        """`min_free_bytes`: the disk space that must stay free."""
        self._lock = FolderLock(folder=folder, clock=clock)
        self._min_free_bytes = min_free_bytes
        self._folder = folder
        self._incoming = folder / "incoming"
        self._executor = executor

    def open_folder(self) -> None:
        """Create the folder if needed. Raises OSError. Blocks, so it belongs to start-up."""
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)

    def spool(self, memory_bytes: int) -> DiskSpool:
        """Return a buffer for incoming bytes, which `receive` takes without a copy."""
        return DiskSpool(
            folder=self._incoming, memory_bytes=memory_bytes, check_room=self._check_free_space
        )

    def _check_folder(self) -> None:
        """Raise FolderMissing if the folder is missing."""
        if not self._incoming.is_dir():
            raise FolderMissing(self._folder)

    def _check_free_space(self) -> None:
        self._check_folder()
        found = os.statvfs(self._incoming)
        if found.f_bavail * found.f_frsize < self._min_free_bytes:
            raise OSError(
                errno.ENOSPC,
                "the free disk space is below the configured minimum",
                str(self._incoming),
            )

    def content_path(self, hash: bytes) -> Path:
        """Return where a content is, or would be."""
        return self._path("content", hash)

    async def add(self, source: ReadableBytes) -> PlacedFile:
        """Copy the rest of `source` durably to its place. Raises OSError."""
        await self._lock.wait_for_remover()
        return await run_in(self._executor, lambda: self._add(source))

    async def receive(self, source: ReadableBytes) -> ReceivedFile:
        """The first half of `add`: copy the rest of `source` durably to the disk. Raises
        OSError."""
        return await run_in(self._executor, lambda: self.receive_now(source))

    async def place(self, received: ReceivedFile) -> PlacedFile:
        """The second half of `add`: link it to its place. Raises OSError."""
        await self._lock.wait_for_remover()
        return await run_in(self._executor, lambda: self._place(received))

    def discard(self, received: ReceivedFile) -> None:
        """Release bytes that are in their place, or not needed."""
        received.path.unlink(missing_ok=True)
        os.close(received.lock)

    async def settle(self, stored: PlacedFile) -> None:
        """Keep a file whose row is committed."""
        await run_in(self._executor, lambda: _settle(stored))

    def abandon(self, stored: PlacedFile) -> None:
        """Release a file that gets no row. The bytes stay until the next sweep: another upload may
        rely on them."""
        os.close(stored.lock)

    async def open(self, hash: bytes) -> OpenedFile | None:
        """Open a content for reading; None if it does not exist. Raises OSError."""
        return await run_in(self._executor, lambda: self._open(self.content_path(hash)))

    async def has(self, hash: bytes) -> bool:
        """Whether a content exists."""
        return await run_in(self._executor, self.content_path(hash).is_file)

    @contextmanager
    def lend(self, hash: bytes) -> Iterator[Path | None]:
        """Give a content a name that stays valid within the context, even if the content is
        removed; None if it does not exist."""
        part = self._incoming / f"{uuid4().hex}.part"
        try:
            os.link(self.content_path(hash), part)
        except FileNotFoundError:
            yield None
            return
        handle = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield part
        finally:
            part.unlink(missing_ok=True)
            os.close(handle)

    async def list_contents(self, number: int) -> Sequence[ContentFile]:
        """Return all contents whose hash begins with this byte."""
        folder = self._folder / "content" / f"{number:02x}"
        return await run_in(
            self._executor, lambda: [file for each in _folders(folder) for file in _list(each)]
        )

    async def list_thumbnails(self, number: int) -> Set[bytes]:
        """Return the hashes beginning with this byte of contents that have thumbnails."""
        folder = self._folder / "thumbnails" / f"{number:02x}"
        return await run_in(
            self._executor, lambda: {hash for each in _folders(folder) for hash in _hashes_in(each)}
        )

    async def evict(self, hashes: Iterable[bytes]) -> None:
        """Delete contents from the folder that the object store has too."""
        paths = [self.content_path(hash) for hash in hashes]
        await run_in(self._executor, lambda: _unlink(paths))

    async def get_thumbnail(self, hash: bytes, name: str) -> StoredThumbnail | None:
        """Return the thumbnail of a content with this name, or None. Raises OSError."""
        path = self._path("thumbnails", hash) / name
        return await run_in(self._executor, lambda: self._open_thumbnail(path))

    async def set_thumbnail(self, hash: bytes, name: str, data: bytes, max_thumbnails: int) -> None:
        """Store a thumbnail of a content, unless it has `max_thumbnails` already. Raises
        OSError."""
        folder = self._path("thumbnails", hash)

        def store() -> None:
            self._check_free_space()
            _write_thumbnail(folder, name, data, max_thumbnails)

        await run_in(self._executor, store)

    async def remove_thumbnails(self, hash: bytes) -> None:
        """Delete the thumbnails of a content."""
        folder = self._path("thumbnails", hash)
        await run_in(self._executor, lambda: shutil.rmtree(folder, ignore_errors=True))

    async def sweep(
        self, get_used_hashes: Callable[[Set[bytes]], Awaitable[Set[bytes]]]
    ) -> int | None:
        """Delete the remains of a crash. Return how many entries there were; None: other processes
        are writing, so nothing was done."""
        lock = await self._lock.lock_exclusive()
        if lock is None:
            return None
        try:
            self._check_folder()
            hashes = {
                path: _hash_of(path.name)
                for path in sorted(self._incoming.iterdir())
                if not _is_in_use(path)
            }
            used = await get_used_hashes({hash for hash in hashes.values() if hash is not None})
            self._delete_remains(hashes, used)
            return len(hashes)
        finally:
            os.close(lock)

    async def remove_unused(
        self, hashes: Set[bytes], remove_rows: Callable[[], Awaitable[Set[bytes]]]
    ) -> Set[bytes] | None:
        """Delete contents that no row uses after `remove_rows` has deleted rows. Return these
        contents.

        None: other processes are writing, so nothing was done and `remove_rows` was not called. An
        entry in `incoming` is added before the rows are deleted and removed after the contents: a
        crash between leaves it for the next sweep.
        """
        lock = await self._lock.lock_exclusive()
        if lock is None:
            return None
        # Not in the executor, whose threads may all be waiting for the lock. This frees no bytes:
        # the entries hold them
        try:
            entries = self._add_entries(hashes)
            unused = await remove_rows()
            for hash in unused:
                self.content_path(hash).unlink(missing_ok=True)
        finally:
            os.close(lock)
        await run_in(self._executor, lambda: self._delete_contents(entries, unused))
        return unused

    def _add_entries(self, hashes: Set[bytes]) -> list[Path]:
        entries = []
        for hash in sorted(hashes):
            entry = self._incoming / f"{hash.hex()}.{uuid4().hex}"
            with suppress(FileNotFoundError):
                os.link(self.content_path(hash), entry)
                entries.append(entry)
        _sync_folder(self._incoming)
        return entries

    def _delete_contents(self, entries: Sequence[Path], unused: Set[bytes]) -> None:
        for hash in unused:
            shutil.rmtree(self._path("thumbnails", hash), ignore_errors=True)
            _sync_folder_if_exists(self.content_path(hash).parent)
        for entry in entries:
            entry.unlink(missing_ok=True)

    def _path(self, kind: str, hash: bytes) -> Path:
        text = hash.hex()
        return self._folder / kind / text[:2] / text[2:4] / text

    def _add(self, source: ReadableBytes) -> PlacedFile:
        received = self.receive_now(source)
        try:
            return self._place(received)
        finally:
            self.discard(received)

    def receive_now(self, source: ReadableBytes) -> ReceivedFile:
        """Like `receive`, on the calling thread, which may wait for the disk."""
        detached = source.detach_file() if isinstance(source, DiskSpool) else None
        if detached is not None:
            return _receive_file(detached)
        self._check_free_space()
        part = self._incoming / f"{uuid4().hex}.part"
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            digest, size = _copy(source, handle)
        except BaseException:
            part.unlink(missing_ok=True)
            os.close(handle)
            raise
        return ReceivedFile(path=part, hash=digest, size=size, lock=handle)

    def _place(self, received: ReceivedFile) -> PlacedFile:
        lock = self._lock.lock_shared()
        try:
            entry = self._incoming / f"{received.hash.hex()}.{uuid4().hex}"
            received.path.rename(entry)
            _sync_folder(self._incoming)
            path = self.content_path(received.hash)
            _make_folder(path.parent, self._folder)
            with suppress(FileExistsError):
                os.link(entry, path)
            _sync_folder(path.parent)
        except BaseException:
            os.close(lock)
            raise
        return PlacedFile(hash=received.hash, size=received.size, entry=entry, lock=lock)

    def _open(self, path: Path) -> OpenedFile | None:
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            self._check_folder()  # a missing folder says nothing about the file
            return None
        found = os.fstat(file.fileno())
        now = time.time()
        if now - found.st_mtime > READ_RESOLUTION_SECONDS:
            os.utime(file.fileno(), (now, now))
        return OpenedFile(executor=self._executor, file=file, size=found.st_size)

    def _open_thumbnail(self, path: Path) -> StoredThumbnail | None:
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        try:
            beginning = os.pread(file.fileno(), FIRST_READ_BYTES, 0)
            found = os.fstat(file.fileno())
        except BaseException:
            file.close()
            raise
        if len(beginning) >= found.st_size:
            file.close()
            return StoredThumbnail(beginning, None, found.st_mtime)
        return StoredThumbnail(
            beginning,
            OpenedFile(executor=self._executor, file=file, size=found.st_size),
            found.st_mtime,
        )

    def _delete_remains(self, hashes: dict[Path, bytes | None], used: Set[bytes]) -> None:
        for entry, hash in hashes.items():
            if hash is not None and hash not in used:
                self.content_path(hash).unlink(missing_ok=True)
                shutil.rmtree(self._path("thumbnails", hash), ignore_errors=True)
            entry.unlink(missing_ok=True)


def _copy(source: ReadableBytes, target: int) -> tuple[bytes, int]:
    digest = hashlib.sha256()
    size = 0
    while piece := source.read(COPY_BYTES):
        digest.update(piece)
        size += len(piece)
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(target, rest) :]
    os.fsync(target)
    return digest.digest(), size


def _receive_file(detached: DetachedFile) -> ReceivedFile:
    digest = hashlib.sha256()
    size = 0
    piece = bytearray(COPY_BYTES)
    view = memoryview(piece)
    try:
        os.lseek(detached.handle, 0, os.SEEK_SET)
        while count := os.readv(detached.handle, [piece]):
            digest.update(view[:count])
            size += count
        os.fsync(detached.handle)
    except BaseException:
        detached.path.unlink(missing_ok=True)
        os.close(detached.handle)
        raise
    return ReceivedFile(path=detached.path, hash=digest.digest(), size=size, lock=detached.handle)


def _is_in_use(path: Path) -> bool:
    """Whether a process writes or reads this entry now."""
    if path.suffix != ".part":
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _settle(stored: PlacedFile) -> None:
    try:
        stored.entry.unlink(missing_ok=True)
    finally:
        os.close(stored.lock)


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _write_thumbnail(folder: Path, name: str, data: bytes, max_thumbnails: int) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if len(os.listdir(folder)) >= max_thumbnails and not (folder / name).exists():
        return
    # A crash leaves one unsynced file that nobody needs: it gets its name only when it is complete.
    part = folder / f".{uuid4().hex}"
    try:
        with open(part, "xb", opener=_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.rename(folder / name)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _folders(folder: Path) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return ()


def _list(folder: Path) -> Iterator[ContentFile]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            hash = _hash_of(entry.name)
            if hash is not None:
                with suppress(FileNotFoundError):
                    found = entry.stat()
                    yield ContentFile(hash, found.st_size, found.st_mtime)


def _hashes_in(folder: Path) -> Iterator[bytes]:
    for name in _folders(folder):
        hash = _hash_of(name.name)
        if hash is not None:
            yield hash


def _hash_of(name: str) -> bytes | None:
    """Return the hash that an entry of `incoming` names; None for a part or anything else."""
    text, _, rest = name.partition(".")
    if rest == "part" or len(text) != 64:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


def _make_folder(folder: Path, above: Path) -> None:
    if folder.is_dir():
        return
    if folder != above:
        _make_folder(folder.parent, above)
    folder.mkdir(mode=0o700, exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder_if_exists(folder: Path) -> None:
    with suppress(FileNotFoundError):
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
