"""Allows only one server at a time on an SQLite file. A second server would not be notified of the
changes of the first, so its caches would be stale.

The lock is on a separate file beside the database, because closing any handle of the database file
releases SQLite's own locks. The kernel releases the lock when the process ends.

Most command-line tools do not take the lock, so that operators can use them while the server runs.
The server learns of their changes at its next write.
"""

import fcntl
import os
from typing import Self

import msgspec

from storage.engine.sqlite import SQLiteConfig


class DatabaseInUse(Exception):
    """Another server uses the file. The text tells the operator what to do."""


class ServerLock(msgspec.Struct, frozen=True):
    """The lock of the server on its SQLite file, held until `release` or the end of the process."""

    descriptor: int

    @classmethod
    def acquire(cls, config: SQLiteConfig) -> Self:
        """Take the lock. Raises DatabaseInUse; OSError if the folder is missing or not writable."""
        # no symbolic link: anyone who may write in the folder could make root change the owner of
        # any file
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(f"{config.path}-lock", flags, 0o600)
        if os.geteuid() == 0 and os.path.exists(config.path):
            # as SQLite does with its files: otherwise a command that root ran would leave a file
            # that the server's user cannot lock
            owner = os.stat(config.path)
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(descriptor)
            raise DatabaseInUse(
                f"another server uses the SQLite file {config.path} already: stop it first "
                "(several nodes on one database need PostgreSQL)"
            ) from error
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        """Release the lock."""
        os.close(self.descriptor)
