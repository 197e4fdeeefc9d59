"""The interface to a database engine that the rest of storage uses.

`storage/engine/sqlite.py` and `storage/engine/postgres.py` implement it. SQL is written once, with
`?` for arguments. The two databases may differ only in what this module declares.

Properties of both databases, and rules for SQL that runs on both:
- `INSERT … ON CONFLICT … DO UPDATE` and `RETURNING` behave the same. Text compares and sorts by
  code point (a PostgreSQL database with another collation is refused).
- Truth values are stored as 0 or 1. Bytes are passed and returned as `bytes`.
- A write cannot continue after one of its statements has failed (a PostgreSQL limitation).
- PostgreSQL cannot store U+0000 in text, so each U+0000 in an argument is replaced by U+10FFFF. A
  lookup with the original text finds the row, but the returned text contains U+10FFFF. Text that
  has to be exact is stored as bytes.
- Integers have 64 bits.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

SQLValue = str | int | float | bytes | bool | None
Row = tuple[Any, ...]

MAX_CHUNK = 512
"""The most keys in one statement of `query_in`."""

READ_COUNTERS: Final = "SELECT name, value FROM counters"
SAVE_COUNTER: Final = (
    "INSERT INTO counters (name, value) VALUES (?, ?)"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)

CUSTOM_PLAN: Final = "/* planned for its arguments */ "
"""Prefix of a statement that PostgreSQL has to plan each time, because the best plan depends on the
arguments: a join that stops at its LIMIT, a match by LIKE. A DELETE that has a subquery with
`LIMIT ?` is planned each time without this prefix."""


def get_prefix_end(prefix: str) -> str:
    """Return the upper bound of the texts that begin with a prefix. `column >= prefix AND column <
    bound` can use an index; `LIKE` cannot. The prefix is not empty and does not end in the last
    code point of Unicode."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


class DatabaseUnavailable(Exception):
    """The database could not do the work (lost, full, closed, too slow). No part of this write was
    acknowledged.

    Clients get M_UNKNOWN with status 503. The cause, if there is one, is in `__cause__`.
    """


class NodeChannelLost(Exception):
    """The connection that receives notifications of other nodes is lost."""


class UnsuitableDatabase(Exception):
    """The database cannot be used in its present condition. The text tells the operator what to
    do."""


class Connection(Protocol):
    """A connection to a database. Only one thread uses it at a time."""

    def query(self, sql: str, args: Sequence[SQLValue]) -> list[Row]: ...
    def query_one(self, sql: str, args: Sequence[SQLValue]) -> Row | None: ...
    def query_in(
        self,
        sql: str,
        keys: Sequence[SQLValue],
        before: Sequence[SQLValue],
        after: Sequence[SQLValue],
    ) -> list[Row]:
        """Run `sql` for a list of keys: not empty, at most `MAX_CHUNK`."""

    def query_each(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], before: Sequence[SQLValue]
    ) -> list[list[Row]]:
        """Run `sql` for each row of arguments. `rows` has between 1 and `MAX_CHUNK` rows."""

    def query_each_and_change(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], change: str, before: Sequence[SQLValue]
    ) -> list[list[Row]]:
        """Run `sql` for each row of arguments, then `change` for the rows that it found. `rows` has
        between 1 and `MAX_CHUNK` rows, and `sql` finds at most that many."""

    def query_with(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[SQLValue]],
        sql: str,
        args: Sequence[SQLValue],
    ) -> list[Row]:
        """Run `sql` with a table of these rows. `rows` has between 1 and `MAX_CHUNK` rows. Each
        column holds either text or integers."""

    def execute(self, sql: str, args: Sequence[SQLValue]) -> int: ...
    def execute_later(self, sql: str, args: Sequence[SQLValue]) -> None:
        """Run one statement, in order, without waiting for its result. A later call may raise its
        error, `savepoint` at the latest."""

    def execute_in_later(
        self, sql: str, keys: Sequence[SQLValue], before: Sequence[SQLValue]
    ) -> None:
        """Like `execute_later`, for a list of keys: not empty, at most `MAX_CHUNK`."""

    def execute_many(self, sql: str, rows: Iterable[Sequence[SQLValue]]) -> None:
        """Like `execute_later`, once for each row."""

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[SQLValue]]
    ) -> None:
        """Insert new rows in the cheapest way. Integers go into BIGINT columns only."""

    def execute_script(self, sql: str) -> None:
        """Run several statements without arguments inside the open transaction."""

    def begin_snapshot(self) -> None:
        """Let all queries until `end` see the database at one moment."""

    def begin_write(self) -> dict[str, int]:
        """Begin a write transaction and set its savepoint. Only one runs at a time across all
        nodes. Return the counters."""

    def begin_migration(self) -> None:
        """Begin a transaction once no other process migrates."""

    def savepoint(self) -> None:
        """Release the savepoint and set the next. Raises the errors of deferred statements."""

    def rollback_to_savepoint(self) -> None:
        """Undo everything since the last savepoint."""

    def notify_nodes(self, position: int) -> None:
        """Notify the other nodes, with the commit, to apply what is written up to this position.
        Does nothing where there is only one node."""

    def commit(self, counters: Mapping[str, int]) -> None:
        """Write these counters and commit. Everything is durable when this returns.

        When it raises and `transaction_has_failed` is true, a statement before the COMMIT failed
        and nothing was committed.
        """

    def rollback(self) -> None: ...
    def end(self) -> None:
        """End a snapshot."""

    def transaction_is_open(self) -> bool:
        """Return False if an error ended the whole transaction or the connection."""

    def transaction_has_failed(self) -> bool:
        """Return whether the server has reported a failed statement, so that the transaction can
        only be rolled back."""

    def is_usable(self) -> bool:
        """Return False if the connection is lost and has to be replaced."""

    def close(self) -> None: ...


class NodeChannel(Protocol):
    """The connection on which a node receives notifications of other nodes. While it is open, the
    other nodes see this node as running."""

    node: int
    """The number of this node."""

    def fileno(self) -> int:
        """Return a descriptor that stays the same until `close`, even if the connection is lost."""

    def receive(self) -> Sequence[Any]:
        """Return the notifications received since the last call, without waiting. Raises
        NodeChannelLost."""

    def close(self) -> None: ...


class Engine(Protocol):
    """Opens connections and classifies database errors."""

    @property
    def name(self) -> str:
        """`sqlite` or `postgres`. Also the infix of a migration file for this database."""

    @property
    def location(self) -> str:
        """The location of the database, in words for the operator. Contains no secrets."""

    @property
    def bytes_type(self) -> str:
        """The SQL type for `BYTES` in a schema file."""

    @property
    def errors(self) -> type[Exception]:
        """The base class of the driver's errors."""

    @property
    def reads_on_calling_thread(self) -> bool:
        """Whether a point read costs less than handing it to a thread."""

    @property
    def reader_threads(self) -> int: ...
    @property
    def readers_at_start(self) -> int:
        """The number of read connections to open at start."""

    def connect_reader(self) -> Connection: ...
    def connect_writer(self) -> Connection: ...
    def open_node_channel(self) -> NodeChannel | None:
        """Open the connection that receives notifications of other nodes. Return None if the
        database cannot have several nodes. Blocks."""

    def is_retryable(self, error: BaseException) -> bool:
        """Return whether the same transaction may succeed if it runs again: after a conflict, or a
        connection lost before the commit."""

    def is_outage(self, error: BaseException) -> bool:
        """Return whether the database cannot work at present (full disk, lost server), whatever the
        statement."""

    def check(self, connection: Connection) -> None:
        """Raise UnsuitableDatabase if the database is too old or has a setting that would lead to
        errors later."""

    def truncate_log(self) -> bool:
        """Remove old writes from the write-ahead log beside the database, if this program is
        responsible for it. Return False if other connections prevented that."""

    def backup_before_migration(self, version: int) -> str | None:
        """Copy the database, if this program is responsible for backups. Return the path of the
        copy."""
