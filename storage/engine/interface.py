"""What the two databases have in common, as the rest of storage sees them.

`storage/engine/sqlite.py` and `storage/engine/postgres.py` implement these; SQL is written once,
with `?` for arguments, and only what stands here may differ between them.

Laws of SQL that runs on both:
- `INSERT … ON CONFLICT … DO UPDATE` and `RETURNING` are the same on both, and so are comparison and
  order of text (by code point: a PostgreSQL database with another collation is refused).
- Truth is stored as 0 or 1. Bytes go in and come out as `bytes`.
- A write may not go on after a statement of it has failed (PostgreSQL cannot).
- U+0000 in text is found again by the same key, but PostgreSQL gives it back as U+10FFFF: what has
  to be exact is stored as bytes.
- Whole numbers have 64 bits.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

SQLValue = str | int | float | bytes | bool | None
Row = tuple[Any, ...]

LARGEST_CHUNK = 512
"""How many keys go into one statement of `query_in`."""

READ_COUNTERS: Final = "SELECT name, value FROM counters"
SAVE_COUNTER: Final = "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"

FOR_ITS_ARGUMENTS: Final = "/* planned for its arguments */ "
"""Stands before a statement that PostgreSQL is to plan each time, as what is best depends on its
arguments: how much it joins when it has enough by its LIMIT, what it finds by LIKE. So `DELETE …
LIMIT ?)` is planned without that word, too."""


def end_of_beginning(beginning: str) -> str:
    """The text before which all texts end that begin so: `column >= beginning AND column < end`
    finds them by an index, as `LIKE` does not. `beginning`: not empty, its last character is not
    the last one that there is."""
    return beginning[:-1] + chr(ord(beginning[-1]) + 1)


class DatabaseUnavailable(Exception):
    """The database did not do what it was asked (lost, full, closed, too slow); nothing of this
    write was acknowledged.

    For callers: M_UNKNOWN with status 503. The cause is in `__cause__`, where there is one.
    """


class NodeCallsLost(Exception):
    """The other nodes are not heard any more."""


class UnsuitableDatabase(Exception):
    """The database cannot be used as it is; the text says what to do."""


class Connection(Protocol):
    """One connection of one database, used by one thread at a time."""

    def query(self, sql: str, args: Sequence[SQLValue]) -> list[Row]: ...
    def query_one(self, sql: str, args: Sequence[SQLValue]) -> Row | None: ...
    def query_in(
        self,
        sql: str,
        keys: Sequence[SQLValue],
        before: Sequence[SQLValue],
        after: Sequence[SQLValue],
    ) -> list[Row]:
        """`keys` is not empty and not longer than LARGEST_CHUNK."""

    def query_each(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], before: Sequence[SQLValue]
    ) -> list[list[Row]]:
        """`rows` is not empty and not longer than LARGEST_CHUNK."""

    def query_each_changing(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], change: str, before: Sequence[SQLValue]
    ) -> list[list[Row]]:
        """`rows` is not empty and not longer than LARGEST_CHUNK; no more rows are found."""

    def query_with(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[SQLValue]],
        sql: str,
        args: Sequence[SQLValue],
    ) -> list[Row]:
        """`rows` is not empty and not longer than LARGEST_CHUNK; a column has text, or whole
        numbers."""

    def execute(self, sql: str, args: Sequence[SQLValue]) -> int: ...
    def execute_later(self, sql: str, args: Sequence[SQLValue]) -> None:
        """Run one statement in its order without waiting for its result. A later call may raise its
        error: `savepoint` at the latest."""

    def execute_in_later(
        self, sql: str, keys: Sequence[SQLValue], before: Sequence[SQLValue]
    ) -> None:
        """Likewise; `keys` is not empty and not longer than LARGEST_CHUNK."""

    def execute_many(self, sql: str, rows: Iterable[Sequence[SQLValue]]) -> None:
        """As `execute_later`, once for each of the rows."""

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[SQLValue]]
    ) -> None:
        """Rows that are not there yet, in the cheapest way; whole numbers into columns of the type
        BIGINT only."""

    def execute_script(self, sql: str) -> None:
        """Several statements without arguments, inside the transaction that is open."""

    def begin_snapshot(self) -> None:
        """Until `end`, all queries see the database at one moment."""

    def begin_write(self) -> dict[str, int]:
        """Begin the one write transaction that may run at a time on all nodes, and set its
        savepoint. Return the counters."""

    def begin_migration(self) -> None:
        """Begin a transaction, once no other process migrates."""

    def savepoint(self) -> None:
        """Keep what was done since the last savepoint, and set the next. Raises the errors of
        statements that were left for later."""

    def rollback_to_savepoint(self) -> None:
        """Undo what was done since the last savepoint."""

    def call_nodes(self, position: int) -> None:
        """With the commit, call the other nodes to take in what is written up to that position,
        where there may be others."""

    def commit(self, counters: Mapping[str, int]) -> None:
        """Write these counters and commit. When this returns, everything is durable.

        When it raises and `transaction_has_failed` then, a statement before the COMMIT failed, and
        nothing was committed.
        """

    def rollback(self) -> None: ...
    def end(self) -> None:
        """Leave a snapshot."""

    def transaction_is_open(self) -> bool:
        """False where an error ended the whole transaction, or the connection."""

    def transaction_has_failed(self) -> bool:
        """Whether the server has answered that a statement failed, and the transaction can only be
        rolled back."""

    def is_usable(self) -> bool:
        """False when the connection is lost and has to be replaced."""

    def close(self) -> None: ...


class NodeCalls(Protocol):
    """The connection by which a node hears the others call; it is seen to be there while it
    lives."""

    node: int
    """Its number among them."""

    def fileno(self) -> int:
        """The same until `close`, whatever befalls the connection."""

    def take(self) -> Sequence[Any]:
        """What was called since the last time; waits for nothing. Raises NodeCallsLost."""

    def close(self) -> None: ...


class Engine(Protocol):
    """Opens connections; knows what its errors mean."""

    @property
    def name(self) -> str:
        """`sqlite` or `postgres`: also the infix of a migration's variant."""

    @property
    def where(self) -> str:
        """Where the database is, in words for the operator; no secrets."""

    @property
    def bytes_type(self) -> str:
        """What `BYTES` in a schema file stands for."""

    @property
    def errors(self) -> type[Exception]:
        """The driver's base of all errors."""

    @property
    def reads_on_calling_thread(self) -> bool:
        """Whether a point read costs less than handing it to a thread."""

    @property
    def reader_threads(self) -> int: ...
    @property
    def readers_at_start(self) -> int:
        """How many reading connections are opened before they are needed."""

    def connect_reader(self) -> Connection: ...
    def connect_writer(self) -> Connection: ...
    def connect_node(self) -> NodeCalls | None:
        """None where there are no other nodes. Blocks."""

    def is_worth_retrying(self, error: BaseException) -> bool:
        """Whether the same transaction, run again, may well succeed (a conflict, a connection lost
        before the commit)."""

    def is_outage(self, error: BaseException) -> bool:
        """Whether the database cannot do its work now (a full disk, a lost server), whatever it was
        asked to do."""

    def check(self, connection: Connection) -> None:
        """Raises UnsuitableDatabase when it is too old or was set up in a way that would lead to
        errors later."""

    def empty_log(self) -> bool:
        """Leave nothing of what was written before in the log beside the database, where that is
        this program's task; False where others were in the way."""

    def backup_before_migration(self, version: int) -> str | None:
        """Copy the database aside, where that is this program's task; where the copy is."""
