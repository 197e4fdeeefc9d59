"""SQLite as the source or target of a copy.

Exclusive locking prevents other processes from using the file. The lock is taken before the first
read, so a server that has the file open is noticed even if it is idle. Such a lock needs a writable
connection. On the source, `PRAGMA query_only` makes SQLite refuse writes.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence

from storage.engine.interface import Row
from storage.engine.sqlite import SQLiteEngine
from storage.engine.text_index import SQLITE_REBUILD, SQLITE_TABLE
from storage.maintenance.copy_interface import BATCH, SCHEMA_VERSION_TABLE, CannotCopy

LOCK_TIMEOUT = 1


class SQLiteSide:
    """The `storage.maintenance.copy_interface.CopySide` of an SQLite database."""

    def __init__(self, *, engine: SQLiteEngine, writes: bool) -> None:
        """Raises CannotCopy if the file does not exist or another process has it open."""
        if not engine.path.exists():
            raise CannotCopy(f"there is no database at {engine.location}")
        # Not through the engine, whose settings would touch the file before the lock is taken.
        self._connection = sqlite3.connect(engine.path, timeout=LOCK_TIMEOUT, isolation_level=None)
        try:
            self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            if not writes:
                self._connection.execute("PRAGMA query_only = ON")
            self._connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            self._connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        except sqlite3.OperationalError as error:
            self._connection.close()
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise CannotCopy(
                f"another process has {engine.location} open: stop the server first"
            ) from error

    def get_schema_version(self) -> int:
        if not self._connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = ?", (SCHEMA_VERSION_TABLE,)
        ).fetchall():
            return 0
        ((version,),) = self._connection.execute(
            "SELECT COALESCE(MAX(version), 0) FROM schema_version"
        ).fetchall()
        return int(version)

    def get_tables(self) -> Mapping[str, Sequence[str]]:
        names = self._connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
            r" AND name NOT LIKE 'sqlite\_%' ESCAPE '\' AND name <> ?"
            " AND substr(name, 1, length(?)) <> ? ORDER BY name",
            (SCHEMA_VERSION_TABLE, SQLITE_TABLE, SQLITE_TABLE),
        ).fetchall()
        return {
            name: [
                column
                for (column,) in self._connection.execute(
                    "SELECT name FROM pragma_table_info(?) ORDER BY cid", (name,)
                ).fetchall()
            ]
            for (name,) in names
        }

    def count_rows(self, table: str) -> int:
        ((count,),) = self._connection.execute(f'SELECT COUNT(*) FROM "{table}"').fetchall()
        return int(count)

    def read_rows(self, table: str, columns: Sequence[str]) -> Iterator[Sequence[Row]]:
        cursor = self._connection.execute(f'SELECT {_quoted(columns)} FROM "{table}"')
        try:
            while rows := cursor.fetchmany(BATCH):
                yield rows
        finally:
            cursor.close()

    def add_rows(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        placeholders = ",".join("?" * len(columns))
        self._connection.executemany(
            f'INSERT INTO "{table}" ({_quoted(columns)}) VALUES ({placeholders})', rows
        )

    def commit(self) -> None:
        self._connection.execute(SQLITE_REBUILD)  # the text index exists on SQLite only
        self._connection.execute("COMMIT")
        self._connection.execute("ANALYZE")

    def close(self) -> None:
        self._connection.close()


def _quoted(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
