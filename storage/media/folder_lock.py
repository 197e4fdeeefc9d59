"""A lock for a folder to which many writers add files, and from which a remover sometimes deletes
some. Writers and removers may be in several processes. The lock consists of two files:

    lock    each writer holds it shared, the remover exclusively
    turn    held exclusively by a remover that waits for `lock`; new writers wait for `turn` first

Laws:
- A remover waits only for writers that have the lock already, so it gets the lock even if the
  folder is busy. The remover gives up after several seconds.
- Only `lock_shared` blocks, so call it in a thread. Writers wait for `turn` on the reactor thread,
  by polling. If they waited in threads, the writers that have the lock might find no thread in
  which to finish.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

PAUSE_SECONDS: Final = 0.02
MAX_ATTEMPTS: Final = 250
"""The number of attempts of a remover to get the lock."""


class FolderMissing(OSError):
    """The folder that existed at start-up is missing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            errno.ENOENT,
            "the media folder is missing: mount its disk or restore it with its contents;"
            " the server then continues by itself",
            str(folder),
        )


class FolderLock:
    """Gives file descriptors that hold the lock. Closing a descriptor releases its lock. Raises
    OSError, including FolderMissing."""

    def __init__(self, *, folder: Path, clock: IReactorTime) -> None:
        self._folder = folder
        self._clock = clock

    def lock_shared(self) -> int:
        """Lock for writing. Blocks while a remover holds the lock."""
        lock = self._open("lock", fcntl.LOCK_SH)
        assert lock is not None  # it blocks
        return lock

    async def wait_for_remover(self) -> None:
        """Wait while a remover waits for the lock. Call it before `lock_shared`."""
        while (turn := self._open("turn", fcntl.LOCK_SH | fcntl.LOCK_NB)) is None:
            await self._pause()
        os.close(turn)

    async def lock_exclusive(self) -> int | None:
        """Lock for removal, when current writers are done; None if that takes too long."""
        turn: int | None = None
        try:
            for _ in range(MAX_ATTEMPTS):
                turn = self._open("turn", fcntl.LOCK_EX | fcntl.LOCK_NB) if turn is None else turn
                lock = None if turn is None else self._open("lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock is not None:
                    return lock
                await self._pause()
            return None
        finally:
            if turn is not None:
                os.close(turn)

    async def _pause(self) -> None:
        over: Deferred[None] = Deferred()
        self._clock.callLater(PAUSE_SECONDS, over.callback, None)
        await over

    def _open(self, name: str, how: int) -> int | None:
        try:
            lock = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as error:
            raise FolderMissing(self._folder) from error
        try:
            fcntl.flock(lock, how)
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        return lock
