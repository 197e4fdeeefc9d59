"""One server at a time on an SQLite file: a second would not hear of what the first writes.

A lock on a file of its own beside the database, since closing any handle of the database itself
would end SQLite's locks. The kernel holds it, so it ends with the process, however that ends.
Command-line tools do not ask for it: they may write while a server runs.
"""

import fcntl
import os
from typing import Self

import msgspec

from storage.engine.sqlite import SQLiteConfig


class DatabaseInUse(Exception):
    """Another server has the file; the text says what to do."""


class SoleServer(msgspec.Struct, frozen=True):
    """The right to be the server of a file, until the process ends or `give_up`."""

    descriptor: int

    @classmethod
    def claim(cls, config: SQLiteConfig) -> Self:
        """Raises DatabaseInUse; OSError where there is no such folder, or no right to write
        there."""
        # no link: whoever may write in the folder could have root give them any file
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(f"{config.path}-lock", flags, 0o600)
        if os.geteuid() == 0 and os.path.exists(config.path):
            # as SQLite does with its files: else a command that root ran would leave the server,
            # another user, without the lock
            owner = os.stat(config.path)
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(descriptor)
            raise DatabaseInUse(
                f"another server uses the SQLite file {config.path} already: end that one first "
                "(several processes on one database need PostgreSQL)"
            ) from error
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def give_up(self) -> None:
        """Let another begin."""
        os.close(self.descriptor)
