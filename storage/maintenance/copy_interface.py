"""The interface to the source or target database of a copy.

`copy_sqlite.py` and `copy_postgres.py` implement it. A `CopySide` is one connection to one of the
two databases. Opening the connection raises `CannotCopy` if a server uses the database. Until it is
closed, no server can write to the database.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from storage.engine.interface import Row

BATCH = 500
"""Rows that are read and written at a time. An event has at most 64 KiB of content: 32 MiB in
memory at worst."""

SCHEMA_VERSION_TABLE = "schema_version"
"""The table that describes the database itself. It is not copied."""


class CannotCopy(Exception):
    """Nothing was copied. The text tells the operator the reason and the remedy."""


class CopySide(Protocol):
    """One of the two databases. Its transaction lasts from the opening to `commit` or `close`."""

    def get_schema_version(self) -> int:
        """Return the schema version; 0 for a database without a schema."""

    def get_tables(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of all tables except SCHEMA_VERSION_TABLE, as read from the database;
        without the tables of the database's own indexes."""

    def count_rows(self, table: str) -> int: ...
    def read_rows(self, table: str, columns: Sequence[str]) -> Iterator[Sequence[Row]]:
        """Yield all rows, BATCH at a time, in no particular order."""

    def add_rows(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None: ...
    def commit(self) -> None:
        """Commit the added rows. They are durable when this returns."""

    def close(self) -> None:
        """Close the connection. Without `commit`, nothing was added."""
