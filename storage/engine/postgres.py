"""PostgreSQL, version 13 and later, through psycopg2: the database that several nodes can share.

Connections are in autocommit mode and this module sends BEGIN itself. So BEGIN, SAVEPOINT, RELEASE
and statements whose result is not needed travel in the same message as the next statement.

A writer holds an advisory lock from begin to commit. So nodes write one after the other, changes
are committed in order of position, and writers cannot deadlock on row locks.
"""

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import islice

import psycopg2
from psycopg2 import errorcodes
from psycopg2.extensions import (
    TRANSACTION_STATUS_INERROR,
    TRANSACTION_STATUS_INTRANS,
    connection,
    register_type,
)

from storage.engine.interface import (
    READ_COUNTERS,
    SAVE_COUNTER,
    Connection,
    DatabaseUnavailable,
    NodeChannel,
    Row,
    SQLValue,
    UnsuitableDatabase,
)
from storage.engine.postgres_config import PostgresConfig, make_connection_string
from storage.engine.postgres_notify import CHANNEL, PostgresNodeChannel, confirmed_write_payload
from storage.engine.postgres_statements import (
    BYTES,
    WRITE_LOCK,
    adapt,
    array_parameters,
    column_types,
    encode_rows,
    expand_keys,
    make_lateral_change,
    make_lateral_query,
    split_values,
    transpose,
)
from storage.engine.prepared import NUMERIC_TYPES, Argument, NumberArray, PreparedStatements

_TAKE_WRITE_LOCK = f"SELECT pg_advisory_xact_lock({WRITE_LOCK})".encode()
MIGRATION_LOCK = WRITE_LOCK + 1

MIN_COPY_ROWS = 4
"""The number of rows from which COPY costs less than INSERT. COPY needs one more round trip. Fewer
rows are inserted by a statement each."""
ROWS_PER_MESSAGE = 500
"""The most rows in one message."""

_COLLATIONS = ("C", "POSIX", "C.UTF-8", "C.UTF8")
"""The collations that order text by code point, as SQLite does, and never change."""

_RETRIED_CLASSES = ("40", "08", "57P0", "0A000", "26000")
"""Prefixes of SQLSTATEs: conflict between transactions, lost connection, server shutting down or
starting, a table that another program changed under a prepared statement (a new connection has
none), a lost prepared statement (`DISCARD ALL`)."""

_OUTAGE_CLASSES = ("08", "53", "57", "58", "55P03")
"""Prefixes of SQLSTATEs: lost connection, insufficient resources, operator intervention, system
error, lock timeout."""


class PostgresConnection:
    """A connection to the server. See `storage.engine.interface.Connection`."""

    __slots__ = ("_connection", "_cursor", "_deferred", "_info", "_prepared")

    def __init__(self, opened: connection) -> None:
        self._connection = opened
        self._cursor = opened.cursor()
        self._info = opened.info
        self._prepared = PreparedStatements()
        self._deferred: list[bytes] = []
        """Deferred statements, whose results are not needed. They are sent with the next
        statement."""

    def query(self, sql: str, args: Sequence[SQLValue]) -> list[Row]:
        self._run(sql, adapt(args))
        return self._cursor.fetchall()

    def query_one(self, sql: str, args: Sequence[SQLValue]) -> Row | None:
        self._run(sql, adapt(args))
        return self._cursor.fetchone()

    def query_in(
        self,
        sql: str,
        keys: Sequence[SQLValue],
        before: Sequence[SQLValue],
        after: Sequence[SQLValue],
    ) -> list[Row]:
        self._run(*expand_keys(sql, keys, before, after))
        return self._cursor.fetchall()

    def query_each(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], before: Sequence[SQLValue]
    ) -> list[list[Row]]:
        if len(rows) == 1:
            return [self.query(sql, (*before, *rows[0]))]
        self._run(
            make_lateral_query(sql, column_types(rows[0]), len(before)),
            (*transpose(rows), *adapt(before)),
        )
        return self._group_by_row(len(rows))

    def query_each_and_change(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], change: str, before: Sequence[SQLValue]
    ) -> list[list[Row]]:
        self._run(
            make_lateral_change(sql, column_types(rows[0]), change),
            (*transpose(rows), *adapt(before)),
        )
        return self._group_by_row(len(rows))

    def query_with(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[SQLValue]],
        sql: str,
        args: Sequence[SQLValue],
    ) -> list[Row]:
        table = f"SELECT * FROM unnest({array_parameters(column_types(rows[0]))})"
        self._run(
            f"WITH {name} ({', '.join(columns)}) AS ({table}) {sql}",
            (*transpose(rows), *adapt(args)),
        )
        return self._cursor.fetchall()

    def execute(self, sql: str, args: Sequence[SQLValue]) -> int:
        self._run(sql, adapt(args))
        return self._cursor.rowcount

    def execute_later(self, sql: str, args: Sequence[SQLValue]) -> None:
        self._defer(sql, adapt(args))

    def execute_in_later(
        self, sql: str, keys: Sequence[SQLValue], before: Sequence[SQLValue]
    ) -> None:
        self._defer(*expand_keys(sql, keys, before, ()))

    def execute_many(self, sql: str, rows: Iterable[Sequence[SQLValue]]) -> None:
        remaining = iter(map(adapt, rows))
        first = list(islice(remaining, MIN_COPY_ROWS))
        values = split_values(sql) if len(first) == MIN_COPY_ROWS else None
        batch = first + list(islice(remaining, ROWS_PER_MESSAGE - MIN_COPY_ROWS))
        while batch:
            if values is None:
                self._deferred += [
                    self._cursor.mogrify(self._prepare(sql, args), args) for args in batch
                ]
            else:
                before, row, after = values
                listed = b",".join([self._cursor.mogrify(row, args) for args in batch])
                self._deferred.append(b"%b%b%b" % (before, listed, after))
            if len(batch) < ROWS_PER_MESSAGE:
                return  # sent with the next statement
            self._flush()
            batch = list(islice(remaining, ROWS_PER_MESSAGE))

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[SQLValue]]
    ) -> None:
        names = ", ".join(columns)
        if len(rows) < MIN_COPY_ROWS:
            self.execute_many(
                f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})", rows
            )
            return
        self._flush()
        copied = encode_rows(len(columns), rows)
        copy = f"COPY {table} ({names}) FROM STDIN BINARY".encode()
        self._cursor.copy_expert(copy, BytesIO(copied), len(copied))

    def execute_script(self, sql: str) -> None:
        self._flush()
        self._cursor.execute(sql)

    def begin_snapshot(self) -> None:
        self._deferred = [b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"]

    def end(self) -> None:
        self._deferred.clear()
        if self._connection.closed == 0 and self._info.transaction_status in (
            TRANSACTION_STATUS_INTRANS,
            TRANSACTION_STATUS_INERROR,
        ):
            self._cursor.execute("ROLLBACK")

    def begin_write(self) -> dict[str, int]:
        # a separate statement after the wait for the lock: it sees what was committed meanwhile
        self._deferred = [b"BEGIN", _TAKE_WRITE_LOCK, b"SAVEPOINT one"]
        self._send(READ_COUNTERS.encode())
        return dict(self._cursor.fetchall())

    def begin_migration(self) -> None:
        self._cursor.execute(
            "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; "
            f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"
        )

    def savepoint(self) -> None:
        self._deferred.append(b"RELEASE SAVEPOINT one")
        self._send(b"SAVEPOINT one")

    def rollback_to_savepoint(self) -> None:
        self._deferred.clear()
        self._cursor.execute("ROLLBACK TO SAVEPOINT one")

    def notify_nodes(self, position: int) -> None:
        self._deferred.append(
            self._cursor.mogrify(
                "SELECT pg_notify(%s, %s)", (CHANNEL, confirmed_write_payload(position))
            )
        )

    def commit(self, counters: Mapping[str, int]) -> None:
        for counter in counters.items():
            self._defer(SAVE_COUNTER, counter)
        self._send(b"COMMIT")
        if self._cursor.statusmessage != "COMMIT":
            # COMMIT of a failed transaction rolls it back without an error.
            raise DatabaseUnavailable("the transaction had failed before its commit")

    def rollback(self) -> None:
        self.end()  # without an open transaction, the server would log a warning

    def transaction_is_open(self) -> bool:
        return self._connection.closed == 0 and self._info.transaction_status in (
            TRANSACTION_STATUS_INTRANS,
            TRANSACTION_STATUS_INERROR,
        )

    def transaction_has_failed(self) -> bool:
        return (
            self._connection.closed == 0
            and self._info.transaction_status == TRANSACTION_STATUS_INERROR
        )

    def is_usable(self) -> bool:
        return self._connection.closed == 0

    def close(self) -> None:
        self._connection.close()

    def _group_by_row(self, number: int) -> list[list[Row]]:
        """Return the rows that `make_lateral_query` found, grouped by row of arguments."""
        found: list[list[Row]] = [[] for _ in range(number)]
        for row in self._cursor.fetchall():
            found[row[0] - 1].append(row[1:])
        return found

    def _prepare(self, sql: str, args: Sequence[Argument]) -> str:
        """Return the text that executes a statement. Prepares it first if necessary."""
        before, text = self._prepared.lookup(sql, args)
        if before:
            self._deferred.append(before.encode())
            self._flush()
            self._prepared.record(sql, args, text)
        return text

    def _defer(self, sql: str, args: Sequence[Argument]) -> None:
        """Defer a statement to the next message."""
        self._deferred.append(self._fill_in(self._prepare(sql, args), args))

    def _fill_in(self, text: str, args: Sequence[Argument]) -> bytes:
        """Return a statement with its arguments filled in. Numbers are formatted here, which is
        faster than the driver's adaptation."""
        if args and NUMERIC_TYPES.issuperset(map(type, args)):
            return (
                text % tuple([f"'{each}'" if type(each) is NumberArray else each for each in args])
            ).encode()
        return self._cursor.mogrify(text, args)

    def _run(self, sql: str, args: Sequence[Argument]) -> None:
        text = self._prepare(sql, args)
        if self._deferred:
            # Fill in the text first: an argument that cannot be sent must not drop the deferred
            # statements.
            self._send(self._fill_in(text, args))
        else:
            self._cursor.execute(text, args)

    def _send(self, last: bytes) -> None:
        """Send the deferred statements and this one as one message."""
        message = b"; ".join((*self._deferred, last))
        self._deferred.clear()
        self._cursor.execute(message)

    def _flush(self) -> None:
        if self._deferred:
            self._send(self._deferred.pop())


class PostgresEngine:
    """See `storage.engine.interface.Engine`."""

    name = "postgres"
    bytes_type = "BYTEA"
    errors: type[Exception] = psycopg2.Error
    reads_on_calling_thread = False

    def __init__(self, config: PostgresConfig) -> None:
        self._config = config
        parts = [
            f"{key}={config.connect[key]}"
            for key in ("host", "port", "dbname", "user")
            if key in config.connect
        ]
        self.location = f"the PostgreSQL database {' '.join(parts)}"
        self.reader_threads = config.pool_max
        self.readers_at_start = min(config.pool_min, config.pool_max)

    def connect_reader(self) -> Connection:
        return self._connect({"default_transaction_read_only": "on"})

    def connect_writer(self) -> Connection:
        timeout = int(self._config.write_lock_timeout * 1000)
        settings = {"lock_timeout": timeout, "idle_in_transaction_session_timeout": timeout // 3}
        # after the wait for the lock, a statement must see what other nodes committed, whatever the
        # role's default
        return self._connect({**settings, "default_transaction_isolation": "read\\ committed"})

    def open_node_channel(self) -> NodeChannel | None:
        return PostgresNodeChannel(self.open({}))

    def is_retryable(self, error: BaseException) -> bool:
        if not isinstance(error, psycopg2.Error):
            return False
        if error.pgcode is None:
            # For a message that could not be sent, the driver raises a plain DatabaseError.
            is_unsent = type(error) is psycopg2.DatabaseError
            return is_unsent or isinstance(
                error, psycopg2.OperationalError | psycopg2.InterfaceError
            )
        return (
            error.pgcode.startswith(_RETRIED_CLASSES)
            or error.pgcode == errorcodes.IDLE_IN_TRANSACTION_SESSION_TIMEOUT
        )

    def is_outage(self, error: BaseException) -> bool:
        if not isinstance(error, psycopg2.Error):
            return False
        if error.pgcode is None:
            return self.is_retryable(error)
        return error.pgcode.startswith(_OUTAGE_CLASSES)

    def check(self, connection: Connection) -> None:
        row = connection.query_one(
            "SELECT current_setting('server_version_num')::int, pg_encoding_to_char(encoding),"
            " datcollate FROM pg_database WHERE datname = current_database()",
            (),
        )
        version, encoding, collation = row or (0, "", "")
        if version < 130000:
            raise UnsuitableDatabase(
                f"PostgreSQL 13 or later is needed; {self.location} is on version"
                f" {version // 10000}"
            )
        if encoding != "UTF8" or collation.upper() not in _COLLATIONS:
            raise UnsuitableDatabase(
                f"{self.location} has encoding {encoding} and collation {collation},"
                " but needs UTF8 and C: create it with CREATE DATABASE … ENCODING 'UTF8' LOCALE 'C'"
                " TEMPLATE template0"
            )

    def truncate_log(self) -> bool:
        return True  # the server manages its own log

    def backup_before_migration(self, version: int) -> str | None:
        return None  # the operator makes backups; a failed migration is rolled back

    def _connect(self, settings: dict[str, str | int]) -> PostgresConnection:
        return PostgresConnection(self.open(settings))

    def open(self, settings: Mapping[str, str | int]) -> connection:
        """Open a driver connection in autocommit mode. `settings` are server settings of this
        session."""
        opened = psycopg2.connect(make_connection_string(self._config, settings))
        opened.autocommit = True
        opened.set_client_encoding("UTF8")
        register_type(BYTES, opened)
        return opened
