"""Makes a PostgreSQL database empty again after a test, in a fifth of the time in which one is made from a template.

A database is used again only where all is as it was when it was made: nobody is connected to it any more, and there is the same
in its catalogue. Its rows are removed, and what has grown is cut off.
"""

from typing import Any, Final

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

MOST_USES: Final = 50
"""After so many tests a database is made anew: what is left of rows that were removed does not grow for ever."""
FEW_PAGES: Final = 4
"""Pages that rows are removed from one by one; PostgreSQL plans for a table that was never looked through as if it had ten."""

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
    AND (pg_relation_size(oid) > 0 OR pg_relation_size(nullif(reltoastrelid, 0)) > 0)
"""


def catalogue(dsn: str) -> tuple[Any, ...]:
    """What there is in a database, but for rows."""
    with _Opened(dsn) as cursor:
        return _catalogue(cursor)


def empty(dsn: str, expected: tuple[Any, ...]) -> bool:
    """Remove all rows; False where that does not make the database what it was, whose `catalogue` was as expected."""
    with _Opened(dsn) as cursor:
        cursor.execute(OTHERS)
        if cursor.fetchone() != (0,) or _catalogue(cursor) != expected:
            return False
        cursor.execute(GROWN)
        grown = cursor.fetchall()
        small = [sql.Identifier(name) for name, pages in grown if pages <= FEW_PAGES]
        large = [sql.Identifier(name) for name, pages in grown if pages > FEW_PAGES]
        statements = [sql.SQL("DELETE FROM {}").format(name) for name in small]
        if large:
            statements.append(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(large)))
        if statements:
            cursor.execute(sql.SQL("; ").join(statements))
        return True


def _catalogue(cursor: Cursor) -> tuple[Any, ...]:
    cursor.execute(CATALOGUE)
    row = cursor.fetchone()
    assert row is not None
    return row


class _Opened:
    """A cursor on a connection of its own, on which each statement is a transaction."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg2.connect(dsn)
        self._connection.autocommit = True

    def __enter__(self) -> Cursor:
        return self._connection.cursor()

    def __exit__(self, *_: object) -> None:
        self._connection.close()
