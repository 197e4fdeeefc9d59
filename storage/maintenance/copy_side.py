"""What copying a database needs of either database; `copy_sqlite.py` and `copy_postgres.py`
implement it.

A side is one connection that has the database to itself: opening it raises `CannotCopy` while a
server uses the database, and until it is closed no server can write there.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from storage.engine.interface import Row

BATCH = 500
"""Rows that are read and written at a time. A row of events has at most 64 KiB of content: 32 MiB
in memory at worst."""

NOT_COPIED = "schema_version"
"""The only table of a database that says something about the database itself; each side has its
own."""


class CannotCopy(Exception):
    """Nothing was copied; the text says why and what to do."""


class CopySide(Protocol):
    """One of the two databases, in one transaction from its opening to `commit` or `close`."""

    def get_schema_version(self) -> int:
        """0 for a database without a schema."""

    def get_tables(self) -> Mapping[str, Sequence[str]]:
        """The columns of all tables but NOT_COPIED, as the database itself tells them; without its
        own indexes."""

    def count_rows(self, table: str) -> int: ...
    def read_rows(self, table: str, columns: Sequence[str]) -> Iterator[Sequence[Row]]:
        """All rows, BATCH at a time, in no particular order."""

    def add_rows(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None: ...
    def commit(self) -> None:
        """Keep what was added. When this returns, it is durable."""

    def close(self) -> None:
        """Without `commit`, nothing was added."""
