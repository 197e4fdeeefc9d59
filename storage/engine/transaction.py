"""What a function that `Database.read` or `Database.write` runs may do with the database.

Laws:
- SQL has `?` for its arguments, on both databases, and nowhere else.
- An SQL error may not be caught inside the function: it undoes the function's whole work.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from storage.engine.interface import LARGEST_CHUNK, Connection, Row, SQLValue
from storage.engine.streams import Change

POSITION = "position"
"""The counter that is the one sequence."""


class Transaction:
    """What a read may do."""

    __slots__ = ("_connection", "queries")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.queries = 0
        """How many times the database was asked, so that tests and metrics see what a request
        costs."""

    def query(self, sql: str, args: Sequence[SQLValue] = ()) -> list[Row]:
        """All rows."""
        self.queries += 1
        return self._connection.query(sql, args)

    def query_one(self, sql: str, args: Sequence[SQLValue] = ()) -> Row | None:
        """The first row, or None."""
        self.queries += 1
        return self._connection.query_one(sql, args)

    def query_in(
        self,
        sql: str,
        keys: Iterable[SQLValue],
        before: Sequence[SQLValue] = (),
        after: Sequence[SQLValue] = (),
    ) -> list[Row]:
        """Rows of `sql`, whose `{keys}` stands where the list of keys goes (`… WHERE id IN
        {keys}`), in bounded chunks.

        `before` and `after` are the arguments on either side of the keys. A key that is given twice
        counts once; no keys, no query. With more than LARGEST_CHUNK keys, an ORDER BY or LIMIT
        holds only within each chunk.
        """
        wanted = list(dict.fromkeys(keys))
        if not wanted:
            return []
        if len(wanted) <= LARGEST_CHUNK:
            self.queries += 1
            return self._connection.query_in(sql, wanted, before, after)
        rows: list[Row] = []
        for start in range(0, len(wanted), LARGEST_CHUNK):
            self.queries += 1
            rows += self._connection.query_in(
                sql, wanted[start : start + LARGEST_CHUNK], before, after
            )
        return rows

    def query_each(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], before: Sequence[SQLValue] = ()
    ) -> list[list[Row]]:
        """The rows of `sql` for each of these rows of arguments. An order holds only if the
        statement has a LIMIT.

        SQLite runs it for each, which is cheap inside the process; PostgreSQL is asked once for
        all, in bounded chunks. Each argument is text in every row, or a whole number in every row.
        `before`: arguments that come before those of each row.
        """
        found: list[list[Row]] = []
        for start in range(0, len(rows), LARGEST_CHUNK):
            self.queries += 1
            found += self._connection.query_each(sql, rows[start : start + LARGEST_CHUNK], before)
        return found

    def query_with(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[SQLValue]],
        sql: str,
        args: Sequence[SQLValue] = (),
    ) -> list[Row]:
        """The rows of `sql`, which follows upon `WITH name (columns) AS (…)`: a table of these
        rows, in bounded chunks.

        `args` are those of `sql`. Each column has text in every row, or a whole number in every
        row.
        """
        found: list[Row] = []
        for start in range(0, len(rows), LARGEST_CHUNK):
            self.queries += 1
            found += self._connection.query_with(
                name, columns, rows[start : start + LARGEST_CHUNK], sql, args
            )
        return found


def select_head(txn: Transaction) -> int:
    """The position of the latest change that is committed, whoever wrote it."""
    row = txn.query_one("SELECT value FROM counters WHERE name = ?", (POSITION,))
    return int(row[0]) if row is not None else 0


class WriteTransaction(Transaction):
    """What a write may do besides."""

    __slots__ = ("callbacks", "changes", "counters", "everywhere", "known")

    def __init__(self, connection: Connection, counters: dict[str, int]) -> None:
        """`counters`: as they stand; this write changes them in place."""
        super().__init__(connection)
        self.counters = counters
        self.changes: list[Change] = []
        self.callbacks: list[Callable[[], None]] = []
        self.everywhere = 0
        """The position up to which all nodes must have heard before the write is acknowledged."""
        self.known: dict[Any, Any] = {}
        """What parts of storage have read in this write, each under keys of its own: nobody else
        writes meanwhile."""

    def execute(self, sql: str, args: Sequence[SQLValue] = ()) -> int:
        """Run one statement; the number of rows that it changed."""
        self.queries += 1
        return self._connection.execute(sql, args)

    def execute_later(self, sql: str, args: Sequence[SQLValue] = ()) -> None:
        """Run one statement of which nothing needs to be known and that is not expected to be
        refused (no key of it may be there already).

        PostgreSQL gets it with the next one, or with the commit: it costs no round trip. What it
        raises, that one raises, or the write.
        """
        self.queries += 1
        self._connection.execute_later(sql, args)

    def query_each_changing(
        self,
        sql: str,
        rows: Sequence[Sequence[SQLValue]],
        change: str,
        before: Sequence[SQLValue] = (),
    ) -> list[list[Row]]:
        """As `query_each`; and change what was found: the first column of `sql`, a whole number, is
        named `found_key`, and `change` (`UPDATE … WHERE id IN {keys}`) is one statement for these,
        which are different ones. `before`: its arguments before the keys.

        All is seen as it was before the change. PostgreSQL is asked once for both.
        """
        found: list[list[Row]] = []
        for start in range(0, len(rows), LARGEST_CHUNK):
            self.queries += 1
            found += self._connection.query_each_changing(
                sql, rows[start : start + LARGEST_CHUNK], change, before
            )
        return found

    def execute_in_later(
        self, sql: str, keys: Sequence[SQLValue], before: Sequence[SQLValue] = ()
    ) -> None:
        """As `execute_later`, one statement for a list of different keys, in bounded chunks;
        `before`: the arguments before the keys. No keys, no statement."""
        for start in range(0, len(keys), LARGEST_CHUNK):
            self.queries += 1
            self._connection.execute_in_later(sql, keys[start : start + LARGEST_CHUNK], before)

    def execute_many(self, sql: str, rows: Iterable[Sequence[SQLValue]]) -> None:
        """Run one statement for each of the rows, in their order, as one batch. As with
        `execute_later`, PostgreSQL may get it with what follows, and what it raises, that
        raises."""
        self.queries += 1
        self._connection.execute_many(sql, rows)

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[SQLValue]]
    ) -> None:
        """Add many rows, none of which is there yet: at a third of what statements cost PostgreSQL.

        Whole numbers go into columns of the type BIGINT only.
        """
        if rows:
            self.queries += 1
            self._connection.insert_rows(table, columns, rows)

    def next_position(self, count: int = 1) -> int:
        """Take `count` consecutive positions of the one sequence; the first of them."""
        return self.allocate(POSITION, count)

    def allocate(self, counter: str, count: int = 1) -> int:
        """Take `count` consecutive numbers of a named counter (`room`, `event`, `token`, …); the
        first of them.

        The first number of a new counter is 1.
        """
        if count < 0:
            raise ValueError(f"cannot take {count} numbers of {counter}")
        value = self.counter(counter)
        if count:
            self.counters[counter] = value + count
        return value + 1

    def counter(self, name: str) -> int:
        """How many numbers of a named counter have been taken."""
        return self.counters.get(name, 0)

    def note_position(self, name: str, position: int) -> None:
        """Store a position of this write under a name. `counter` reads it; nothing else may take
        numbers of it."""
        self.counters[name] = position

    def announce(self, change: Change) -> None:
        """Publish this change to the readers of streams once this write is committed."""
        self.changes.append(change)

    def hold_everywhere(self, position: int) -> None:
        """Acknowledge this write only when what is at that position holds on all nodes: each of
        them is called with the commit."""
        self.everywhere = max(self.everywhere, position)
        self._connection.call_nodes(position)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Run this on the reactor thread once this write is committed, before the write is
        acknowledged."""
        self.callbacks.append(callback)
