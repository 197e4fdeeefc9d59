"""The lock of a folder that many write to, also from several processes, and from which somebody
takes things away now and then.

    lock    shared by who writes, and held alone by who takes away
    turn    held alone by who waits to take away: who would begin to write lets them go first

Laws:
- Who takes away waits for those who are writing, not for those who would begin to: they get their
  turn however busy the folder is.
- Only `share` blocks, in a thread. Nobody waits for a turn in a thread: those who are writing need
  the threads to come to an end.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

PAUSE_SECONDS: Final = 0.02
PATIENCE: Final = 250
"""How often who takes away looks whether the writers are done."""


class FolderGone(OSError):
    """The folder is not there any more, as it was at start-up."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            errno.ENOENT,
            "the folder of files is gone: mount its disk, or put it back with what was in it, and all goes on by itself",
            str(folder),
        )


class FolderLock:
    """Gives file descriptors that hold the lock; who closes one gives it back. Raises OSError,
    among them FolderGone."""

    def __init__(self, folder: Path, clock: IReactorTime) -> None:
        self._folder = folder
        self._clock = clock

    def share(self) -> int:
        """For writing. Blocks while somebody takes away."""
        lock = self._open("lock", fcntl.LOCK_SH)
        assert lock is not None  # it was waited for
        return lock

    async def let_go_first(self) -> None:
        """Before `share`: wait while somebody has their turn to take away."""
        while (turn := self._open("turn", fcntl.LOCK_SH | fcntl.LOCK_NB)) is None:
            await self._pause()
        os.close(turn)

    async def take_alone(self) -> int | None:
        """For taking away, when those who write now are done; None where that takes too long."""
        turn: int | None = None
        try:
            for _ in range(PATIENCE):
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
            raise FolderGone(self._folder) from error
        try:
            fcntl.flock(lock, how)
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        return lock
