"""Empties a PostgreSQL database after a test, ten times faster than a new copy of the template.

A database is reused only if nobody is connected to it and its catalogue is unchanged. Its rows are
deleted, and tables that have grown are truncated.

The connection stays open between tests: a new session costs more than all the statements.
"""

import time
from typing import Any, Final

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection

MOST_USES: Final = 50
"""The number of tests after which a new database is made, since deleted rows leave bloat behind."""
FEW_PAGES: Final = 4
"""Up to this many pages, rows are deleted one by one. PostgreSQL plans for ten pages for a table
without statistics."""

PATIENCE: Final = 0.25
"""Seconds to wait for the end of sessions whose connections are closed."""

OTHERS: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid"
    " <> pg_backend_pid()"
)

CATALOGUE: Final = """
SELECT
    (SELECT array_agg(v::text ORDER BY v::text) FROM schema_version v),
    (SELECT count(*) FROM pg_class),
    (SELECT max(oid) FROM pg_class),
    (SELECT count(*) FROM pg_attribute),
    (SELECT count(*) FROM pg_index WHERE indisvalid),
    (SELECT count(*) FROM pg_constraint),
    (SELECT count(*) FROM pg_trigger),
    (SELECT count(*) FROM pg_statistic),
    (SELECT count(*) FROM pg_namespace),
    (SELECT max(oid) FROM pg_proc),
    (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase =
        (SELECT oid FROM pg_database WHERE datname = current_database()))
"""

GROWN: Final = """
SELECT relname,
    (pg_relation_size(oid) + coalesce(pg_relation_size(nullif(reltoastrelid, 0)), 0)) / 8192
        AS pages
FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'schema_version'
    AND pg_relation_size(oid) > 0
"""


class DatabaseReset:
    """Empties one database."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: connection | None = None

    def catalogue(self) -> tuple[Any, ...]:
        """Return the objects of the database's catalogue."""
        (row,) = self._query(CATALOGUE)
        return row

    def empty(self, expected: tuple[Any, ...]) -> bool:
        """Delete all rows. Return False if the database is in use or its `catalogue` is not as
        expected."""
        try:
            return self._empty(expected)
        except (
            psycopg2.OperationalError,
            psycopg2.InterfaceError,
        ):  # a test may have closed all sessions
            self.close()
            return self._empty(expected)

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _empty(self, expected: tuple[Any, ...]) -> bool:
        if not self._is_alone() or self.catalogue() != expected:
            return False
        grown = self._query(GROWN)
        small = [sql.Identifier(name) for name, pages in grown if pages <= FEW_PAGES]
        large = [sql.Identifier(name) for name, pages in grown if pages > FEW_PAGES]
        statements = [sql.SQL("DELETE FROM {}").format(name) for name in small]
        if large:
            statements.append(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(large)))
        if statements:
            with self._connected().cursor() as cursor:
                cursor.execute(sql.SQL("; ").join(statements))
        return True

    def _is_alone(self) -> bool:
        """Whether no other session is connected, after a wait of at most `PATIENCE` seconds."""
        patience_ends = time.monotonic() + PATIENCE
        while self._query(OTHERS) != [(0,)]:
            if time.monotonic() > patience_ends:
                return False
            time.sleep(0.005)
        return True

    def _query(self, text: str) -> list[tuple[Any, ...]]:
        with self._connected().cursor() as cursor:
            cursor.execute(text)
            return cursor.fetchall()

    def _connected(self) -> connection:
        if self._connection is None:
            self._connection = psycopg2.connect(self._dsn)
            self._connection.autocommit = True  # each statement is a transaction
        return self._connection
