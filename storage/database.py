"""The two verbs of storage: `read` and `write`.

Laws:
- `fn(txn, …)` is a plain function. It may be run again (a lost connection, a conflict) and may not wait for anything.
- Writes of many callers run in one database transaction, each in a savepoint of its own: one that fails harms no other.
  A write is acknowledged after the commit.
- What others must hear of is announced through the transaction and published after the commit, in order of position.
- Positions of the one sequence become visible in order: who reads at N has seen all that is ≤ N.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from storage.streams import Change

P = ParamSpec("P")
T = TypeVar("T")

SQLValue = str | int | float | bytes | bool | None
Row = tuple[Any, ...]


class Transaction:
    """What a read may do. SQL has `?` for its arguments on both databases."""

    def query(self, sql: str, args: Sequence[SQLValue] = ()) -> list[Row]:
        """All rows."""
        raise NotImplementedError

    def query_one(self, sql: str, args: Sequence[SQLValue] = ()) -> Row | None:
        """The first row, or None."""
        raise NotImplementedError

    def query_in(self, sql: str, keys: Iterable[SQLValue], before: Sequence[SQLValue] = (), after: Sequence[SQLValue] = ()) -> list[Row]:
        """Rows of `sql`, whose `{keys}` stands where the list of keys goes (`… WHERE id IN {keys}`), in bounded chunks.

        SQLite gets a list of `?`, PostgreSQL an array (`= ANY`); `engine.py` knows how.
        """
        raise NotImplementedError


class WriteTransaction(Transaction):
    """What a write may do besides."""

    def execute(self, sql: str, args: Sequence[SQLValue] = ()) -> int:
        """Run one statement; the number of rows that it changed."""
        raise NotImplementedError

    def execute_many(self, sql: str, rows: Iterable[Sequence[SQLValue]]) -> None:
        """Run one statement for each of the rows, as one batch."""
        raise NotImplementedError

    def next_position(self, count: int = 1) -> int:
        """Take `count` consecutive positions of the one sequence; the first of them."""
        raise NotImplementedError

    def allocate(self, counter: str, count: int = 1) -> int:
        """Take `count` consecutive numbers of a named counter (`room`, `event`, `token`, …); the first of them."""
        raise NotImplementedError

    def announce(self, change: Change) -> None:
        """Publish this change to the readers of streams once this write is committed."""
        raise NotImplementedError

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Run this on the reactor thread once this write is committed, before the write is acknowledged."""
        raise NotImplementedError


class Database:
    """An open database with its migrations done. `storage.engine.open_database` makes it."""

    async def read(self, name: str, fn: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a read in the pool of reading threads. `name` (fixed, snake_case) feeds metrics and the slow log."""
        raise NotImplementedError

    async def read_quickly(self, name: str, fn: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `read`, for a few point reads by key: on SQLite on the calling thread, which costs less than the hop."""
        raise NotImplementedError

    async def write(self, name: str, fn: Callable[Concatenate[WriteTransaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Queue a write for the next group commit; returns after it is durable. Raises what `fn` raised."""
        raise NotImplementedError
