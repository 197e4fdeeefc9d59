"""The folder with the bytes of files: each content once, under its SHA-256.

    content/ab/cd/abcd…           a content, whole: it appears by a link, never while it is written
    thumbnails/ab/cd/abcd…/NAME   what was made of it; may be deleted at any time incoming/*.part
    a content that is being written or read, by whoever has it locked incoming/HASH.*
    a content that is in its place, but not yet in the database, or no longer lock, turn
    who puts a content in its place, or takes one away (`storage/media/folder_lock.py`)

Laws:
- The order is: bytes written and synced, linked to their place, folder synced, row committed, entry
  in `incoming` removed. A crash at any point leaves an entry in `incoming`, from which `sweep`
  knows what to take away: so there is no row without its file, and no file without a row after the
  next start.
- What is taken away goes in the other order: entry in `incoming`, rows, content, entry.
- Several processes may share the folder. Who puts a content in its place shares the lock until its
  row is committed; who takes things away has it alone, or comes another time.
- All of it runs in the executor's threads, but for what holds the lock alone: the threads may all
  be waiting for it.
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
from storage.media.folder_lock import FolderGone, FolderLock
from storage.media.spool import DiskSpool, TakenFile

COPY_BYTES: Final = 1 << 18
READ_GRAIN_SECONDS: Final = 3600.0
"""How exactly it is known when a content was read last."""
BEGINNING_BYTES: Final = 1 << 16
"""Of what was made of a content: so much is read at once, the rest as somebody takes it."""


class ReadableBytes(Protocol):
    """Where bytes come from."""

    def read(self, size: int = -1, /) -> bytes:
        """The next ones, at most so many; none at the end."""
        ...


class Received:
    """Bytes that are on disk and have no place yet. Whoever has them calls `discard` in the end."""

    def __init__(self, path: Path, hash: bytes, size: int, lock: int) -> None:
        self.path = path
        self.hash = hash
        self.size = size
        self.lock = lock


class KeptFile(NamedTuple):
    """A content in its place. `read`: when it came, or was read last, in seconds since 1970."""

    hash: bytes
    size: int
    read: float


class StoredFile:
    """A content that is on disk, and will be kept once `settle` is called: after the row that names
    it is committed."""

    def __init__(self, hash: bytes, size: int, entry: Path, lock: int) -> None:
        self.hash = hash
        self.size = size
        self.entry = entry
        self.lock = lock


class OpenedFile:
    """A content that is open for reading: a source for an answer."""

    def __init__(self, executor: Executor, file: FileIO, size: int) -> None:
        self.size = size
        self._executor = executor
        self._file = file

    def read(self, offset: int, size: int) -> Awaitable[bytes]:
        """From there on so many bytes; fewer at the end."""
        return run_in(self._executor, lambda: os.pread(self._file.fileno(), size, offset))

    def close(self) -> None:
        """A read that is under way ends with an error, which nobody hears."""
        self._file.close()


class KeptThumbnail(NamedTuple):
    """What was made of a content. Who has it closes `file`."""

    beginning: bytes
    file: OpenedFile | None
    """The whole of it, beginning too; None where the beginning is all."""
    made: float
    """When, in seconds since 1970."""


class MediaFiles:
    """The folder. `open_folder` before anything else."""

    def __init__(
        self, folder: Path, executor: Executor, clock: IReactorTime, least_free_bytes: int = 0
    ) -> None:
        """`least_free_bytes`: what the disk is to keep free, whatever comes."""
        self._lock = FolderLock(folder, clock)
        self._least_free_bytes = least_free_bytes
        self._folder = folder
        self._incoming = folder / "incoming"
        self._executor = executor

    def open_folder(self) -> None:
        """Make it if need be. Raises OSError. Blocks, so it belongs to start-up."""
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)

    def spool(self, memory_bytes: int) -> DiskSpool:
        """For what arrives: `receive` takes it without a copy."""
        return DiskSpool(self._incoming, memory_bytes, self._check_room)

    def _check_there(self) -> None:
        """Raises FolderGone."""
        if not self._incoming.is_dir():
            raise FolderGone(self._folder)

    def _check_room(self) -> None:
        self._check_there()
        found = os.statvfs(self._incoming)
        if found.f_bavail * found.f_frsize < self._least_free_bytes:
            raise OSError(
                errno.ENOSPC, "less is free than the configuration wants to be", str(self._incoming)
            )

    def content_path(self, hash: bytes) -> Path:
        """Where a content is, or would be."""
        return self._path("content", hash)

    async def add(self, source: ReadableBytes) -> StoredFile:
        """Copy what is left of `source` to its place, durably. Raises OSError."""
        await self._lock.let_go_first()
        return await run_in(self._executor, lambda: self._add(source))

    async def receive(self, source: ReadableBytes) -> Received:
        """The first half of `add`: copy what is left of `source` to the disk, durably. Raises
        OSError."""
        return await run_in(self._executor, lambda: self.receive_now(source))

    async def place(self, received: Received) -> StoredFile:
        """The second half: link it to its place. Raises OSError."""
        await self._lock.let_go_first()
        return await run_in(self._executor, lambda: self._place(received))

    def discard(self, received: Received) -> None:
        """It is in its place, or not wanted."""
        received.path.unlink(missing_ok=True)
        os.close(received.lock)

    async def settle(self, stored: StoredFile) -> None:
        """The row is committed: the file is no longer on trial."""
        await run_in(self._executor, lambda: _settle(stored))

    def abandon(self, stored: StoredFile) -> None:
        """There will be no row. The bytes stay until the next sweep: another upload may have found
        them there."""
        os.close(stored.lock)

    async def open(self, hash: bytes) -> OpenedFile | None:
        """A content for reading; None when it is not there. Raises OSError."""
        return await run_in(self._executor, lambda: self._open(self.content_path(hash)))

    async def has(self, hash: bytes) -> bool:
        """Whether a content is there."""
        return await run_in(self._executor, self.content_path(hash).is_file)

    @contextmanager
    def lend(self, hash: bytes) -> Iterator[Path | None]:
        """A content under a name that it keeps while the context lasts, even if it is taken away;
        None when it is not there."""
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

    async def list_some(self, number: int) -> Sequence[KeptFile]:
        """All contents whose hash begins with this byte."""
        folder = self._folder / "content" / f"{number:02x}"
        return await run_in(
            self._executor, lambda: [file for each in _folders(folder) for file in _list(each)]
        )

    async def list_thumbnails(self, number: int) -> Set[bytes]:
        """The hashes, beginning with this byte, of contents of which there are thumbnails."""
        folder = self._folder / "thumbnails" / f"{number:02x}"
        return await run_in(
            self._executor, lambda: {hash for each in _folders(folder) for hash in _hashes_in(each)}
        )

    async def evict(self, hashes: Iterable[bytes]) -> None:
        """Take away contents that are elsewhere too, and stay known."""
        paths = [self.content_path(hash) for hash in hashes]
        await run_in(self._executor, lambda: _unlink(paths))

    async def get_thumbnail(self, hash: bytes, name: str) -> KeptThumbnail | None:
        """What was made of a content under this name. Raises OSError."""
        path = self._path("thumbnails", hash) / name
        return await run_in(self._executor, lambda: self._open_thumbnail(path))

    async def set_thumbnail(self, hash: bytes, name: str, data: bytes, at_most: int) -> None:
        """Keep what was made of a content, unless there are so many already. Raises OSError."""
        folder = self._path("thumbnails", hash)

        def keep() -> None:
            self._check_room()
            _keep(folder, name, data, at_most)

        await run_in(self._executor, keep)

    async def remove_thumbnails(self, hash: bytes) -> None:
        """Take away what was made of a content."""
        folder = self._path("thumbnails", hash)
        await run_in(self._executor, lambda: shutil.rmtree(folder, ignore_errors=True))

    async def sweep(
        self, get_used_hashes: Callable[[Set[bytes]], Awaitable[Set[bytes]]]
    ) -> int | None:
        """Take away what a crash has left; how many entries there were. None: others are writing,
        so nothing was done."""
        lock = await self._lock.take_alone()
        if lock is None:
            return None
        try:
            self._check_there()
            hashes = {
                path: _hash_of(path.name)
                for path in sorted(self._incoming.iterdir())
                if not _is_in_use(path)
            }
            used = await get_used_hashes({hash for hash in hashes.values() if hash is not None})
            self._clear(hashes, used)
            return len(hashes)
        finally:
            os.close(lock)

    async def remove_unused(
        self, hashes: Set[bytes], forget: Callable[[], Awaitable[Set[bytes]]]
    ) -> Set[bytes] | None:
        """Take away contents for which `forget` finds, when it has removed rows, that no row is
        left; which these were.

        None: others are writing, so nothing was done, and `forget` was not called. An entry in
        `incoming` comes before the rows go and leaves after the contents: a crash between leaves it
        for the next sweep.
        """
        lock = await self._lock.take_alone()
        if lock is None:
            return None
        # Not in the executor, whose threads may all be waiting for the lock. No bytes are freed
        # here: the entries hold them
        try:
            entries = self._mark(hashes)
            unused = await forget()
            for hash in unused:
                self.content_path(hash).unlink(missing_ok=True)
        finally:
            os.close(lock)
        await run_in(self._executor, lambda: self._clean(entries, unused))
        return unused

    def _mark(self, hashes: Set[bytes]) -> list[Path]:
        entries = []
        for hash in sorted(hashes):
            entry = self._incoming / f"{hash.hex()}.{uuid4().hex}"
            with suppress(FileNotFoundError):
                os.link(self.content_path(hash), entry)
                entries.append(entry)
        _sync_folder(self._incoming)
        return entries

    def _clean(self, entries: Sequence[Path], unused: Set[bytes]) -> None:
        for hash in unused:
            shutil.rmtree(self._path("thumbnails", hash), ignore_errors=True)
            _sync_folder_if_there(self.content_path(hash).parent)
        for entry in entries:
            entry.unlink(missing_ok=True)

    def _path(self, kind: str, hash: bytes) -> Path:
        text = hash.hex()
        return self._folder / kind / text[:2] / text[2:4] / text

    def _add(self, source: ReadableBytes) -> StoredFile:
        received = self.receive_now(source)
        try:
            return self._place(received)
        finally:
            self.discard(received)

    def receive_now(self, source: ReadableBytes) -> Received:
        """As `receive`, on the calling thread, which may wait for the disk."""
        taken = source.take_file() if isinstance(source, DiskSpool) else None
        if taken is not None:
            return _receive_file(taken)
        self._check_room()
        part = self._incoming / f"{uuid4().hex}.part"
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            digest, size = _copy(source, handle)
        except BaseException:
            part.unlink(missing_ok=True)
            os.close(handle)
            raise
        return Received(part, digest, size, handle)

    def _place(self, received: Received) -> StoredFile:
        lock = self._lock.share()
        try:
            entry = self._incoming / f"{received.hash.hex()}.{uuid4().hex}"
            received.path.rename(entry)
            _sync_folder(self._incoming)
            place = self.content_path(received.hash)
            _make_folder(place.parent, self._folder)
            with suppress(FileExistsError):
                os.link(entry, place)
            _sync_folder(place.parent)
        except BaseException:
            os.close(lock)
            raise
        return StoredFile(received.hash, received.size, entry, lock)

    def _open(self, path: Path) -> OpenedFile | None:
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            self._check_there()  # else all files are away for now, and none is unknown
            return None
        found = os.fstat(file.fileno())
        now = time.time()
        if now - found.st_mtime > READ_GRAIN_SECONDS:
            os.utime(file.fileno(), (now, now))
        return OpenedFile(self._executor, file, found.st_size)

    def _open_thumbnail(self, path: Path) -> KeptThumbnail | None:
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        try:
            beginning = os.pread(file.fileno(), BEGINNING_BYTES, 0)
            found = os.fstat(file.fileno())
        except BaseException:
            file.close()
            raise
        if len(beginning) >= found.st_size:
            file.close()
            return KeptThumbnail(beginning, None, found.st_mtime)
        return KeptThumbnail(
            beginning, OpenedFile(self._executor, file, found.st_size), found.st_mtime
        )

    def _clear(self, hashes: dict[Path, bytes | None], used: Set[bytes]) -> None:
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


def _receive_file(taken: TakenFile) -> Received:
    digest = hashlib.sha256()
    size = 0
    piece = bytearray(COPY_BYTES)
    view = memoryview(piece)
    try:
        os.lseek(taken.handle, 0, os.SEEK_SET)
        while count := os.readv(taken.handle, [piece]):
            digest.update(view[:count])
            size += count
        os.fsync(taken.handle)
    except BaseException:
        taken.path.unlink(missing_ok=True)
        os.close(taken.handle)
        raise
    return Received(taken.path, digest.digest(), size, taken.handle)


def _is_in_use(path: Path) -> bool:
    """Whether somebody writes or reads this entry now."""
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


def _settle(stored: StoredFile) -> None:
    try:
        stored.entry.unlink(missing_ok=True)
    finally:
        os.close(stored.lock)


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _keep(folder: Path, name: str, data: bytes, at_most: int) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if len(os.listdir(folder)) >= at_most and not (folder / name).exists():
        return
    # What a crash leaves of it is one unsynced file, whose content nobody would miss: it has its
    # name only when whole.
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


def _list(folder: Path) -> Iterator[KeptFile]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            hash = _hash_of(entry.name)
            if hash is not None:
                with suppress(FileNotFoundError):
                    found = entry.stat()
                    yield KeptFile(hash, found.st_size, found.st_mtime)


def _hashes_in(folder: Path) -> Iterator[bytes]:
    for name in _folders(folder):
        hash = _hash_of(name.name)
        if hash is not None:
            yield hash


def _hash_of(name: str) -> bytes | None:
    """The hash that an entry of `incoming` names; None for one that is only a part, or something
    else."""
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


def _sync_folder_if_there(folder: Path) -> None:
    with suppress(FileNotFoundError):
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
