"""The folder with the bytes of files: each content once, under its SHA-256.

    content/ab/cd/abcd…           a content, whole: it appears by a link, never while it is written
    thumbnails/ab/cd/abcd…/NAME   what was made of it; may be deleted at any time
    incoming/*.part               a content that is being written
    incoming/HASH.*               a content that is in its place, but not yet in the database, or no longer
    lock                          held shared while something is in `incoming`, and exclusively to take things away

Laws:
- The order is: bytes written and synced, linked to their place, folder synced, row committed, entry in `incoming` removed.
  A crash at any point leaves an entry in `incoming`, from which `sweep` knows what to take away: so there is no row
  without its file, and no file without a row after the next start.
- What is taken away goes in the other order: entry in `incoming`, rows, content, entry.
- Several processes may share the folder. Who sweeps holds the lock alone; if others are writing, it sweeps another time.
- All of it runs in the executor's threads, but for what holds the lock alone: the threads may all be waiting for it.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

from storage.executors import Executor, run_in

COPY_BYTES: Final = 1 << 18


class StoredFile:
    """A content that is on disk, and will be kept once `settle` is called: after the row that names it is committed."""

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


class MediaFiles:
    """The folder. `open_folder` before anything else."""

    def __init__(self, folder: Path, executor: Executor) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._executor = executor

    def open_folder(self) -> None:
        """Make it if need be. Raises OSError. Blocks, so it belongs to start-up."""
        self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def spool_folder(self) -> Path:
        """Where uploads may wait while they arrive: on the same disk."""
        return self._incoming

    def content_path(self, hash: bytes) -> Path:
        """Where a content is, or would be."""
        return self._path("content", hash)

    async def add(self, source: BinaryIO) -> StoredFile:
        """Copy what is left of `source` to its place, durably. Raises OSError."""
        return await run_in(self._executor, lambda: self._add(source))

    async def settle(self, stored: StoredFile) -> None:
        """The row is committed: the file is no longer on trial."""
        await run_in(self._executor, lambda: _settle(stored))

    def abandon(self, stored: StoredFile) -> None:
        """There will be no row. The bytes stay until the next sweep: another upload may have found them there."""
        os.close(stored.lock)

    async def open(self, hash: bytes) -> OpenedFile | None:
        """A content for reading; None when it is not there. Raises OSError."""
        return await run_in(self._executor, lambda: self._open(self.content_path(hash)))

    async def has(self, hash: bytes) -> bool:
        """Whether a content is there."""
        return await run_in(self._executor, self.content_path(hash).is_file)

    async def get_thumbnail(self, hash: bytes, name: str) -> bytes | None:
        """What was made of a content under this name."""
        path = self._path("thumbnails", hash) / name
        return await run_in(self._executor, lambda: _read(path))

    async def set_thumbnail(self, hash: bytes, name: str, data: bytes, at_most: int) -> None:
        """Keep what was made of a content, unless there are so many already."""
        folder = self._path("thumbnails", hash)
        await run_in(self._executor, lambda: _keep(folder, name, data, at_most))

    async def sweep(self, get_used_hashes: Callable[[Set[bytes]], Awaitable[Set[bytes]]]) -> int | None:
        """Take away what a crash has left; how many entries there were. None: others are writing, so nothing was done."""
        lock = self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return None
        try:
            hashes = {path: _hash_of(path.name) for path in sorted(self._incoming.iterdir())}
            used = await get_used_hashes({hash for hash in hashes.values() if hash is not None})
            self._clear(hashes, used)
            return len(hashes)
        finally:
            os.close(lock)

    async def remove_unused(self, hashes: Set[bytes], forget: Callable[[], Awaitable[Set[bytes]]]) -> Set[bytes] | None:
        """Take away contents for which `forget` finds, when it has removed rows, that no row is left; which these were.

        None: others are writing, so nothing was done, and `forget` was not called. An entry in `incoming` comes before
        the rows go and leaves after the contents: a crash between leaves it for the next sweep.
        """
        lock = self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return None
        # Not in the executor, whose threads may all be waiting for the lock. No bytes are freed here: the entries hold them
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

    def _lock(self, how: int) -> int | None:
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, how)
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _add(self, source: BinaryIO) -> StoredFile:
        lock = self._lock(fcntl.LOCK_SH)
        assert lock is not None  # it was waited for
        part = self._incoming / f"{uuid4().hex}.part"
        try:
            digest, size = _copy(source, part)
            entry = self._incoming / f"{digest.hex()}.{uuid4().hex}"
            part.rename(entry)
            _sync_folder(self._incoming)
            place = self.content_path(digest)
            _make_folder(place.parent, self._folder)
            with suppress(FileExistsError):
                os.link(entry, place)
            _sync_folder(place.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            os.close(lock)
            raise
        return StoredFile(digest, size, entry, lock)

    def _open(self, path: Path) -> OpenedFile | None:
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        return OpenedFile(self._executor, file, os.fstat(file.fileno()).st_size)

    def _clear(self, hashes: dict[Path, bytes | None], used: Set[bytes]) -> None:
        for entry, hash in hashes.items():
            if hash is not None and hash not in used:
                self.content_path(hash).unlink(missing_ok=True)
            entry.unlink(missing_ok=True)


def _copy(source: BinaryIO, target: Path) -> tuple[bytes, int]:
    digest = hashlib.sha256()
    size = 0
    with open(target, "xb", buffering=0, opener=_private) as file:
        while piece := source.read(COPY_BYTES):
            digest.update(piece)
            size += len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    return digest.digest(), size


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _settle(stored: StoredFile) -> None:
    try:
        stored.entry.unlink(missing_ok=True)
    finally:
        os.close(stored.lock)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _keep(folder: Path, name: str, data: bytes, at_most: int) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if len(os.listdir(folder)) >= at_most:
        return
    # What a crash leaves of it is one unsynced file, whose content nobody would miss: it has its name only when whole.
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


def _hash_of(name: str) -> bytes | None:
    """The hash that an entry of `incoming` names; None for one that is only a part, or something else."""
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
