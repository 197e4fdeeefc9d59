"""The operations available to a function that runs in `Database.read` or `Database.write`.

Laws:
- In SQL, `?` marks the arguments on both databases, and occurs nowhere else.
- The function must not catch an SQL error, because the error undoes all of the function's work.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from storage.engine.interface import MAX_CHUNK, Connection, Row, SQLValue
from storage.engine.streams import Change

POSITION = "position"
"""The counter of stream positions."""


class Transaction:
    """A read transaction."""

    __slots__ = ("_connection", "queries")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.queries = 0
        """The number of queries, for tests and metrics."""

    def query(self, sql: str, args: Sequence[SQLValue] = ()) -> list[Row]:
        """Return all rows."""
        self.queries += 1
        return self._connection.query(sql, args)

    def query_one(self, sql: str, args: Sequence[SQLValue] = ()) -> Row | None:
        """Return the first row, or None."""
        self.queries += 1
        return self._connection.query_one(sql, args)

    def query_in(
        self,
        sql: str,
        keys: Iterable[SQLValue],
        before: Sequence[SQLValue] = (),
        after: Sequence[SQLValue] = (),
    ) -> list[Row]:
        """Return the rows of `sql` for a list of keys, in bounded chunks. `{keys}` in `sql` marks
        the place of the list (`… WHERE id IN {keys}`).

        `before` and `after` are the arguments on either side of the keys. Duplicate keys count
        once. Without keys there is no query. With more than `MAX_CHUNK` keys, an ORDER BY or
        LIMIT applies only within each chunk.
        """
        wanted = list(dict.fromkeys(keys))
        if not wanted:
            return []
        if len(wanted) <= MAX_CHUNK:
            self.queries += 1
            return self._connection.query_in(sql, wanted, before, after)
        rows: list[Row] = []
        for start in range(0, len(wanted), MAX_CHUNK):
            self.queries += 1
            rows += self._connection.query_in(sql, wanted[start : start + MAX_CHUNK], before, after)
        return rows

    def query_each(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], before: Sequence[SQLValue] = ()
    ) -> list[list[Row]]:
        """Return the rows of `sql` for each of these rows of arguments. They are ordered only if
        the statement has a LIMIT.

        SQLite runs the statement for each row, which is cheap inside the process. PostgreSQL runs
        one query for all, in bounded chunks. Each argument is text in every row or an integer in
        every row. `before`: arguments that precede those of each row.
        """
        found: list[list[Row]] = []
        for start in range(0, len(rows), MAX_CHUNK):
            self.queries += 1
            found += self._connection.query_each(sql, rows[start : start + MAX_CHUNK], before)
        return found

    def query_with(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[SQLValue]],
        sql: str,
        args: Sequence[SQLValue] = (),
    ) -> list[Row]:
        """Return the rows of `sql`, which follows `WITH name (columns) AS (…)`: a table of these
        rows, in bounded chunks.

        `args` are the arguments of `sql`. Each column is text in every row or an integer in every
        row.
        """
        found: list[Row] = []
        for start in range(0, len(rows), MAX_CHUNK):
            self.queries += 1
            found += self._connection.query_with(
                name, columns, rows[start : start + MAX_CHUNK], sql, args
            )
        return found


def select_head(txn: Transaction) -> int:
    """Return the position of the latest committed change, whichever node wrote it."""
    row = txn.query_one("SELECT value FROM counters WHERE name = ?", (POSITION,))
    return int(row[0]) if row is not None else 0


class WriteTransaction(Transaction):
    """A write transaction."""

    __slots__ = ("callbacks", "changes", "counters", "known", "required_position")

    def __init__(self, *, connection: Connection, counters: dict[str, int]) -> None:
        """`counters` are the current values. This write changes them in place."""
        super().__init__(connection)
        self.counters = counters
        self.changes: list[Change] = []
        self.callbacks: list[Callable[[], None]] = []
        self.required_position = 0
        """The position that all nodes must have applied before the write is acknowledged; 0 if
        none."""
        self.known: dict[Any, Any] = {}
        """Values that parts of storage have read in this write, each under its own keys. They stay
        true, since no other write runs at the same time."""

    def execute(self, sql: str, args: Sequence[SQLValue] = ()) -> int:
        """Run one statement. Return the number of rows that it changed."""
        self.queries += 1
        return self._connection.execute(sql, args)

    def execute_later(self, sql: str, args: Sequence[SQLValue] = ()) -> None:
        """Run one statement whose result is not needed and that is not expected to fail (none of
        its keys may exist already).

        PostgreSQL receives it with the next statement or with the commit, so it costs no round
        trip. That statement, or the write, raises its error.
        """
        self.queries += 1
        self._connection.execute_later(sql, args)

    def query_each_and_change(
        self,
        sql: str,
        rows: Sequence[Sequence[SQLValue]],
        change: str,
        before: Sequence[SQLValue] = (),
    ) -> list[list[Row]]:
        """Like `query_each`, and change the rows that were found. The first column of `sql` is an
        integer named `found_key`, and `change` (`UPDATE … WHERE id IN {keys}`) is one statement for
        these keys, which are distinct. `before`: its arguments before the keys.

        Both see the tables as they were before the change. PostgreSQL runs both in one query.
        """
        found: list[list[Row]] = []
        for start in range(0, len(rows), MAX_CHUNK):
            self.queries += 1
            found += self._connection.query_each_and_change(
                sql, rows[start : start + MAX_CHUNK], change, before
            )
        return found

    def execute_in_later(
        self, sql: str, keys: Sequence[SQLValue], before: Sequence[SQLValue] = ()
    ) -> None:
        """Like `execute_later`, one statement for a list of distinct keys, in bounded chunks.
        `before`: the arguments before the keys. Without keys there is no statement."""
        for start in range(0, len(keys), MAX_CHUNK):
            self.queries += 1
            self._connection.execute_in_later(sql, keys[start : start + MAX_CHUNK], before)

    def execute_many(self, sql: str, rows: Iterable[Sequence[SQLValue]]) -> None:
        """Run one statement for each of the rows, in order, as one batch. As with `execute_later`,
        PostgreSQL may receive it with a later statement, which then raises its error."""
        self.queries += 1
        self._connection.execute_many(sql, rows)

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[SQLValue]]
    ) -> None:
        """Insert new rows, at a third of the cost of statements on PostgreSQL.

        Integers go into BIGINT columns only.
        """
        if rows:
            self.queries += 1
            self._connection.insert_rows(table, columns, rows)

    def next_position(self, count: int = 1) -> int:
        """Take `count` consecutive positions of the stream. Return the first."""
        return self.allocate(POSITION, count)

    def allocate(self, counter: str, count: int = 1) -> int:
        """Take `count` consecutive numbers of a named counter (`room`, `event`, `token`, …). Return
        the first.

        The first number of a new counter is 1.
        """
        if count < 0:
            raise ValueError(f"cannot take {count} numbers of {counter}")
        value = self.counter(counter)
        if count:
            self.counters[counter] = value + count
        return value + 1

    def counter(self, name: str) -> int:
        """Return the last number that was taken from a named counter; 0 if none."""
        return self.counters.get(name, 0)

    def record_position(self, name: str, position: int) -> None:
        """Store a position of this write under a name. `counter` reads it. Numbers of this name
        must not be allocated."""
        self.counters[name] = position

    def announce(self, change: Change) -> None:
        """Publish this change to the streams once this write is committed."""
        self.changes.append(change)

    def require_all_nodes(self, position: int) -> None:
        """Acknowledge this write only when all nodes have applied everything up to this position.
        They are notified with the commit."""
        self.required_position = max(self.required_position, position)
        self._connection.notify_nodes(position)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Run this on the reactor thread after the commit, before the write is acknowledged."""
        self.callbacks.append(callback)
