"""SQLite: the embedded database of one node.

In WAL mode with `synchronous=FULL`, a commit returns after its fsync, and readers never wait for
the writer. Transactions are begun explicitly (`isolation_level=None`), so that the driver never
opens one itself.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Final, Literal

import msgspec

from storage.engine.interface import (
    MAX_CHUNK,
    READ_COUNTERS,
    SAVE_COUNTER,
    Connection,
    NodeChannel,
    Row,
    SQLValue,
    UnsuitableDatabase,
)

CHECKPOINT_TIMEOUT: Final = 0.2
"""Seconds that a truncating checkpoint waits for readers. Writers wait as long."""

WAL_BYTES: Final = (1000 + 64) * (4096 + 24)
"""The usual maximum length of the log. At this number of pages a commit moves them to the database,
SQLite's default, and the log is written from its beginning again."""
_PAGE: Final = 4096

_OUTAGES = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
    }
)


class SQLiteConfig(msgspec.Struct, frozen=True):
    """The path of the database file and limits for this process."""

    path: str
    readers: int = 3
    """Threads for reads, each with its own connection."""
    busy_timeout: float = 10.0
    """Seconds to wait for another process (a command-line tool) that writes."""
    cache_kib: int = 16384
    """The largest page cache of a connection."""
    synchronous: Literal["FULL", "NORMAL", "OFF"] = "FULL"
    """Less than FULL loses acknowledged writes at a power failure: for tests only."""


@lru_cache(maxsize=4096)
def _with_keys(sql: str, count: int) -> str:
    return sql.replace("{keys}", f"({','.join('?' * count)})")


@lru_cache(maxsize=256)
def _insert(table: str, columns: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def _explain_open_failure(path: Path) -> str | None:
    """Return the reason that a file cannot be opened, if the operator can fix it. SQLite does not
    say it."""
    # functions of `os` do not raise if a folder may not be read
    if os.path.isdir(path):
        return "it is a directory"
    if not os.path.isdir(path.parent):
        return f"the directory {path.parent} does not exist, or this user may not read it"
    if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
        return "this user may not read and write it"
    return (
        None
        if os.access(path.parent, os.W_OK | os.X_OK)
        else f"this user may not write in {path.parent}"
    )


def _extend_log(log: Path) -> None:
    """Extend the log to its usual length with zeros, which SQLite does not take for pages.

    spec: https://www.sqlite.org/fileformat2.html#wal_file_format

    While a file grows, the file system allocates blocks at each sync and journals them: a third of
    the cost of a commit. Call this only within a write, when nothing else writes to the log. SQLite
    has no lock on the log itself, so closing this file releases none.
    """
    with suppress(OSError), log.open("r+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            while (at := file.tell()) < WAL_BYTES:
                # in pages: for one large write Linux uses large folios, and searches them at each
                # later write
                file.write(bytes(_PAGE - at % _PAGE))
        except OSError:
            file.truncate(before)  # the disk is full: give the space back


class SQLiteConnection:
    """A connection to the file. See `storage.engine.interface.Connection`."""

    __slots__ = ("_connection", "_execute", "_log")

    def __init__(self, *, connection: sqlite3.Connection, log: Path | None = None) -> None:
        """`log`: the write-ahead log, to be extended before the first write."""
        self._log = log
        self._connection = connection
        self._execute = connection.execute

    def query(self, sql: str, args: Sequence[SQLValue]) -> list[Row]:
        return self._execute(sql, args).fetchall()

    def query_one(self, sql: str, args: Sequence[SQLValue]) -> Row | None:
        cursor = self._execute(sql, args)
        row: Row | None = cursor.fetchone()
        cursor.close()  # else the statement and its snapshot stay open
        return row

    def query_in(
        self,
        sql: str,
        keys: Sequence[SQLValue],
        before: Sequence[SQLValue],
        after: Sequence[SQLValue],
    ) -> list[Row]:
        return self._execute_in(sql, keys, before, after).fetchall()

    def query_each(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], before: Sequence[SQLValue]
    ) -> list[list[Row]]:
        execute = self._execute
        if before:
            return [execute(sql, (*before, *args)).fetchall() for args in rows]
        return [execute(sql, args).fetchall() for args in rows]

    def query_each_and_change(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], change: str, before: Sequence[SQLValue]
    ) -> list[list[Row]]:
        found = self.query_each(sql, rows, ())
        keys = [row[0] for each in found for row in each]
        if keys:
            self._execute_in(change, keys, before, ())
        return found

    def query_with(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[SQLValue]],
        sql: str,
        args: Sequence[SQLValue],
    ) -> list[Row]:
        # Pad with the last row to a power of two, so that few statements have to be prepared.
        size = min(1 << (len(rows) - 1).bit_length(), MAX_CHUNK)
        filled = [*rows, *[rows[-1]] * (size - len(rows))]
        values = ", ".join([f"({', '.join('?' * len(columns))})"] * size)
        statement = f"WITH {name} ({', '.join(columns)}) AS (VALUES {values}) {sql}"
        return self._execute(statement, [*chain.from_iterable(filled), *args]).fetchall()

    def execute(self, sql: str, args: Sequence[SQLValue]) -> int:
        return self._execute(sql, args).rowcount

    def execute_later(self, sql: str, args: Sequence[SQLValue]) -> None:
        self._execute(sql, args)

    def execute_in_later(
        self, sql: str, keys: Sequence[SQLValue], before: Sequence[SQLValue]
    ) -> None:
        self._execute_in(sql, keys, before, ())

    def execute_many(self, sql: str, rows: Iterable[Sequence[SQLValue]]) -> None:
        self._connection.executemany(sql, rows)

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[SQLValue]]
    ) -> None:
        self._connection.executemany(_insert(table, tuple(columns)), rows)

    def execute_script(self, sql: str) -> None:
        # `executescript` would commit first, so split the statements here.
        statement = ""
        for line in sql.splitlines(keepends=True):
            statement += line
            if sqlite3.complete_statement(statement):
                self._execute(statement)
                statement = ""
        if statement.strip():
            self._execute(statement)

    def begin_snapshot(self) -> None:
        self._execute("BEGIN")

    def end(self) -> None:
        if self._connection.in_transaction:
            self._execute("COMMIT")

    def begin_write(self) -> dict[str, int]:
        self._execute("BEGIN IMMEDIATE")
        if self._log is not None:
            _extend_log(self._log)
            self._log = None
        self._execute("SAVEPOINT one")
        return dict(self._execute(READ_COUNTERS).fetchall())

    def begin_migration(self) -> None:
        self._execute("BEGIN IMMEDIATE")

    def savepoint(self) -> None:
        self._execute("RELEASE one")
        self._execute("SAVEPOINT one")

    def rollback_to_savepoint(self) -> None:
        self._execute("ROLLBACK TO one")

    def notify_nodes(self, position: int) -> None:
        """Do nothing: there are no other nodes."""

    def commit(self, counters: Mapping[str, int]) -> None:
        if counters:
            self._connection.executemany(SAVE_COUNTER, counters.items())
        self._execute("COMMIT")

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self._execute("ROLLBACK")

    def transaction_is_open(self) -> bool:
        return self._connection.in_transaction

    def transaction_has_failed(self) -> bool:
        return False

    def is_usable(self) -> bool:
        return True

    def backup_to(self, path: Path) -> None:
        """Copy the whole database to a file."""
        target = sqlite3.connect(path)
        try:
            self._connection.backup(target)
        finally:
            target.close()

    def close(self) -> None:
        self._connection.close()

    def _execute_in(
        self,
        sql: str,
        keys: Sequence[SQLValue],
        before: Sequence[SQLValue],
        after: Sequence[SQLValue],
    ) -> sqlite3.Cursor:
        # Pad with the last key to a power of two, so that few statements have to be prepared.
        size = min(1 << (len(keys) - 1).bit_length(), MAX_CHUNK)
        padding = [keys[-1]] * (size - len(keys))
        return self._execute(_with_keys(sql, size), (*before, *keys, *padding, *after))


class SQLiteEngine:
    """See `storage.engine.interface.Engine`."""

    name = "sqlite"
    bytes_type = "BLOB"
    errors: type[Exception] = sqlite3.Error
    reads_on_calling_thread = True

    def __init__(self, config: SQLiteConfig) -> None:
        if config.path.startswith(":") or not config.path:
            raise UnsuitableDatabase(f"SQLite needs a file: {config.path!r} is not one")
        self._config = config
        self.path = Path(config.path)
        self.location = f"the SQLite file {config.path}"
        self.reader_threads = config.readers
        self.readers_at_start = 0

    def connect_reader(self) -> Connection:
        connection = self._connect()
        connection.execute("PRAGMA query_only = ON")
        return SQLiteConnection(connection=connection)

    def connect_writer(self) -> Connection:
        return self._connect_writer()

    def open_node_channel(self) -> NodeChannel | None:
        return None

    def is_retryable(self, error: BaseException) -> bool:
        # there is one writer, which has already waited `busy_timeout` for other processes
        return False

    def is_outage(self, error: BaseException) -> bool:
        return (
            isinstance(error, sqlite3.OperationalError)
            and error.sqlite_errorcode & 0xFF in _OUTAGES
        )

    def check(self, connection: Connection) -> None:
        if sqlite3.sqlite_version_info < (3, 37):
            raise UnsuitableDatabase(
                f"SQLite 3.37 or later is needed; this Python has {sqlite3.sqlite_version}"
            )

    def truncate_log(self) -> bool:
        connection = self._connect(timeout=CHECKPOINT_TIMEOUT)
        try:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            connection.close()
        return not busy

    def backup_before_migration(self, version: int) -> str | None:
        copy = Path(f"{self._config.path}.before-schema-{version}")
        copy.touch(mode=0o600)
        connection = self._connect_writer()
        try:
            connection.backup_to(copy)
        finally:
            connection.close()
        return str(copy)

    def _connect_writer(self) -> SQLiteConnection:
        path = Path(self._config.path)
        if path.parent.is_dir() and not path.exists():
            path.touch(mode=0o600)  # readable only by this user
        connection = self._connect()
        self._enable_wal(connection)
        connection.execute(f"PRAGMA synchronous = {self._config.synchronous}")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        # redacted or deleted content must not stay in the free space of the file
        connection.execute("PRAGMA secure_delete = ON")
        # without fsync, extending the log gains nothing
        log = (
            None
            if self._config.synchronous == "OFF"
            else Path(f"{os.path.realpath(self._config.path)}-wal")
        )
        return SQLiteConnection(connection=connection, log=log)

    def _enable_wal(self, connection: sqlite3.Connection) -> None:
        """Set WAL mode. The change of a new file does not wait for other processes by itself, so
        retry."""
        deadline = time.monotonic() + self._config.busy_timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if (
                    error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY
                    or time.monotonic() > deadline
                ):
                    raise
            time.sleep(0.01)

    def _connect(self, timeout: float | None = None) -> sqlite3.Connection:
        config = self._config
        try:
            # Connections move between threads, but one thread at a time uses them.
            connection = sqlite3.connect(
                config.path,
                timeout=config.busy_timeout if timeout is None else timeout,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=1024,
            )
        except sqlite3.OperationalError as error:
            if reason := _explain_open_failure(Path(config.path)):
                error.args = (f"{error}: {reason}",)
            raise
        connection.execute(f"PRAGMA cache_size = {-config.cache_kib}")
        # after each commit of another connection, a memory mapping would be recreated and its pages
        # faulted in again
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection
