"""Buffers for incoming bytes: in memory up to a limit, otherwise in a file.

The file is in the media folder's `incoming` folder, so it can become a stored content without being
copied (`files.py`). The process that uses it holds a lock on it, and `MediaFiles.sweep` ignores
locked files. After a crash the lock is gone, and `sweep` deletes the file.
"""

import fcntl
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Final, Protocol
from uuid import uuid4

CHECK_BYTES: Final = 16 << 20
"""The free space is checked again after so many bytes."""


class Spool(Protocol):
    """A buffer that is written, then read."""

    def write(self, data: bytes, /) -> int:
        """Append bytes. Raises OSError: the disk is full or broken."""
        ...

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, from the start; at most `size`."""
        ...

    def seek(self, offset: int, /) -> int:
        """Set the position."""
        ...

    def truncate(self) -> int:
        """Discard everything after the position."""
        ...

    def close(self) -> None:
        """Discard everything."""


class DetachedFile:
    """A file with its lock; the owner closes it."""

    def __init__(self, *, path: Path, handle: int) -> None:
        self.path = path
        self.handle = handle


class DiskSpool:
    """A spool in the media folder."""

    def __init__(self, *, folder: Path, memory_bytes: int, check_room: Callable[[], None]) -> None:
        """At most `memory_bytes` stay in memory. `check_room` raises OSError if the disk must not
        fill further."""
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._check_room = check_room
        self._memory: BytesIO | None = BytesIO()
        self._file: DetachedFile | None = None
        self._unchecked = 0

    @property
    def path(self) -> Path | None:
        """The file, for another reader; None while everything is in memory."""
        return None if self._file is None else self._file.path

    def write(self, data: bytes, /) -> int:
        if self._memory is not None:
            if self._memory.tell() + len(data) <= self._memory_bytes:
                return self._memory.write(data)
            self._move_to_disk(self._memory)
        assert self._file is not None
        self._unchecked += len(data)
        if self._unchecked > CHECK_BYTES:
            self._check_room()
            self._unchecked = 0
        _write(self._file.handle, data)
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        if self._memory is not None:
            return self._memory.read(size)
        assert self._file is not None
        if size < 0:
            size = os.fstat(self._file.handle).st_size
        return os.read(self._file.handle, size)

    def seek(self, offset: int, /) -> int:
        if self._memory is not None:
            return self._memory.seek(offset)
        assert self._file is not None
        return os.lseek(self._file.handle, offset, os.SEEK_SET)

    def truncate(self) -> int:
        if self._memory is not None:
            return self._memory.truncate()
        assert self._file is not None
        position = os.lseek(self._file.handle, 0, os.SEEK_CUR)
        os.ftruncate(self._file.handle, position)
        return position

    def detach_file(self) -> DetachedFile | None:
        """Hand the file over to the caller, once. None while everything is in memory."""
        file, self._file = self._file, None
        return file

    def close(self) -> None:
        file, self._file = self._file, None
        self._memory = None
        if file is not None:
            file.path.unlink(missing_ok=True)
            os.close(file.handle)

    def _move_to_disk(self, memory: BytesIO) -> None:
        self._check_room()
        path = self._folder / f"{uuid4().hex}.part"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = DetachedFile(path=path, handle=handle)
        fcntl.flock(handle, fcntl.LOCK_EX)
        _write(handle, memory.getbuffer()[: memory.tell()])
        self._memory = None


def _write(handle: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
