"""Makes a PostgreSQL database empty again after a test, in a tenth of the time in which one is made
from a template.

A database is used again only where all is as it was when it was made: nobody is connected to it any
more, and there is the same in its catalogue. Its rows are removed, and what has grown is cut off.

The connection for that stays open from test to test: to begin a session costs the server more than
all that is asked in it.
"""

import time
from typing import Any, Final

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection

MOST_USES: Final = 50
"""The number of tests after which a database is created again, so that what removed rows leave
behind does not grow without end."""
FEW_PAGES: Final = 4
"""Pages that rows are removed from one by one; PostgreSQL plans for a table that was never looked
through as if it had ten."""

PATIENCE: Final = 0.25
"""Seconds in which sessions may end whose connections are closed."""

OTHERS: Final = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

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
    (SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""

GROWN: Final = """
SELECT relname, (pg_relation_size(oid) + coalesce(pg_relation_size(nullif(reltoastrelid, 0)), 0)) / 8192 AS pages
FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'schema_version'
    AND pg_relation_size(oid) > 0
"""


class Emptying:
    """Looks after one database."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: connection | None = None

    def catalogue(self) -> tuple[Any, ...]:
        """Everything in the database except rows."""
        (row,) = self._query(CATALOGUE)
        return row

    def empty(self, expected: tuple[Any, ...]) -> bool:
        """Remove all rows; False where that does not make the database what it was, whose
        `catalogue` was as expected."""
        try:
            return self._empty(expected)
        except (
            psycopg2.OperationalError,
            psycopg2.InterfaceError,
        ):  # a test may have ended all sessions
            self.close()
            return self._empty(expected)

    def close(self) -> None:
        """Close the connection; a later query opens a new one."""
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
        """Whether nobody else is connected, or will not be in a moment."""
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
