"""PostgreSQL: the database that several nodes share. For PostgreSQL 13 and later, by psycopg2.

Connections are in autocommit mode and transactions are begun by hand, so that BEGIN, SAVEPOINT,
RELEASE and statements without a needed result travel in the same message as the statement that
follows.

A writer holds an advisory lock from begin to commit. Nodes write one after the other, so positions
of the one sequence are committed in their order, and writers never wait for each other's rows in a
circle.
"""

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import islice

import psycopg2
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
    NodeCalls,
    Row,
    SQLValue,
    UnsuitableDatabase,
)
from storage.engine.postgres_config import PostgresConfig, describe
from storage.engine.postgres_errors import is_outage, is_worth_retrying
from storage.engine.postgres_notify import CHANNEL, PostgresNodeCalls, changed_payload
from storage.engine.postgres_statements import (
    WRITE_LOCK,
    adapt,
    arrays_of,
    column_types,
    columns_of,
    for_each,
    for_each_changing,
    for_keys,
    values_of,
)
from storage.engine.postgres_values import BYTES, encode_rows
from storage.engine.prepared import NUMBERS, Argument, NumberArray, Prepared

LOCK = f"SELECT pg_advisory_xact_lock({WRITE_LOCK})".encode()
MIGRATION_LOCK = WRITE_LOCK + 1

FEWEST_COPIED = 4
"""Rows from which on COPY, which takes a round trip more, costs less than INSERT; up to there each
has its own statement."""
AT_ONCE = 500
"""Rows that travel in one message."""

_COLLATIONS = ("C", "POSIX", "C.UTF-8", "C.UTF8")
"""Those that order text by code point, as SQLite does, and do so for ever."""


class PostgresConnection:
    """A connection to the server. See `storage.engine.interface.Connection`."""

    __slots__ = ("_connection", "_cursor", "_info", "_prepared", "_waiting")

    def __init__(self, opened: connection) -> None:
        self._connection = opened
        self._cursor = opened.cursor()
        self._info = opened.info
        self._prepared = Prepared()
        self._waiting: list[bytes] = []
        """Statements whose results nobody needs: they are sent with the next one."""

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
        self._run(*for_keys(sql, keys, before, after))
        return self._cursor.fetchall()

    def query_each(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], before: Sequence[SQLValue]
    ) -> list[list[Row]]:
        if len(rows) == 1:
            return [self.query(sql, (*before, *rows[0]))]
        self._run(
            for_each(sql, column_types(rows[0]), len(before)), (*columns_of(rows), *adapt(before))
        )
        return self._found(len(rows))

    def query_each_changing(
        self, sql: str, rows: Sequence[Sequence[SQLValue]], change: str, before: Sequence[SQLValue]
    ) -> list[list[Row]]:
        self._run(
            for_each_changing(sql, column_types(rows[0]), change),
            (*columns_of(rows), *adapt(before)),
        )
        return self._found(len(rows))

    def query_with(
        self,
        name: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[SQLValue]],
        sql: str,
        args: Sequence[SQLValue],
    ) -> list[Row]:
        table = f"SELECT * FROM unnest({arrays_of(column_types(rows[0]))})"
        self._run(
            f"WITH {name} ({', '.join(columns)}) AS ({table}) {sql}",
            (*columns_of(rows), *adapt(args)),
        )
        return self._cursor.fetchall()

    def execute(self, sql: str, args: Sequence[SQLValue]) -> int:
        self._run(sql, adapt(args))
        return self._cursor.rowcount

    def execute_later(self, sql: str, args: Sequence[SQLValue]) -> None:
        self._leave(sql, adapt(args))

    def execute_in_later(
        self, sql: str, keys: Sequence[SQLValue], before: Sequence[SQLValue]
    ) -> None:
        self._leave(*for_keys(sql, keys, before, ()))

    def execute_many(self, sql: str, rows: Iterable[Sequence[SQLValue]]) -> None:
        coming = iter(map(adapt, rows))
        first = list(islice(coming, FEWEST_COPIED))
        values = values_of(sql) if len(first) == FEWEST_COPIED else None
        together = first + list(islice(coming, AT_ONCE - FEWEST_COPIED))
        while together:
            if values is None:
                self._waiting += [
                    self._cursor.mogrify(self._find(sql, args), args) for args in together
                ]
            else:
                before, row, after = values
                listed = b",".join([self._cursor.mogrify(row, args) for args in together])
                self._waiting.append(b"%b%b%b" % (before, listed, after))
            if len(together) < AT_ONCE:
                return  # the last of them go with what follows
            self._flush()
            together = list(islice(coming, AT_ONCE))

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[SQLValue]]
    ) -> None:
        names = ", ".join(columns)
        if len(rows) < FEWEST_COPIED:
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
        self._waiting = [b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"]

    def end(self) -> None:
        self._waiting.clear()
        if self._connection.closed == 0 and self._info.transaction_status in (
            TRANSACTION_STATUS_INTRANS,
            TRANSACTION_STATUS_INERROR,
        ):
            self._cursor.execute("ROLLBACK")

    def begin_write(self) -> dict[str, int]:
        # a statement after the one that waits for the lock: it sees what was committed meanwhile
        self._waiting = [b"BEGIN", LOCK, b"SAVEPOINT one"]
        self._send(READ_COUNTERS.encode())
        return dict(self._cursor.fetchall())

    def begin_migration(self) -> None:
        self._cursor.execute(
            "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; "
            f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"
        )

    def savepoint(self) -> None:
        self._waiting.append(b"RELEASE SAVEPOINT one")
        self._send(b"SAVEPOINT one")

    def rollback_to_savepoint(self) -> None:
        self._waiting.clear()
        self._cursor.execute("ROLLBACK TO SAVEPOINT one")

    def call_nodes(self, position: int) -> None:
        self._waiting.append(
            self._cursor.mogrify("SELECT pg_notify(%s, %s)", (CHANNEL, changed_payload(position)))
        )

    def commit(self, counters: Mapping[str, int]) -> None:
        for counter in counters.items():
            self._leave(SAVE_COUNTER, counter)
        self._send(b"COMMIT")
        if self._cursor.statusmessage != "COMMIT":
            # A transaction in which a statement failed is rolled back by COMMIT, without an error.
            raise DatabaseUnavailable("the transaction had failed before its commit")

    def rollback(self) -> None:
        self.end()  # where the server knows of no transaction, it would warn in its log

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

    def _found(self, number: int) -> list[list[Row]]:
        """What `for_each` found for so many rows."""
        found: list[list[Row]] = [[] for _ in range(number)]
        for row in self._cursor.fetchall():
            found[row[0] - 1].append(row[1:])
        return found

    def _find(self, sql: str, args: Sequence[Argument]) -> str:
        """The text that runs a statement; prepares it first where that is due."""
        before, text = self._prepared.find(sql, args)
        if before:
            self._waiting.append(before.encode())
            self._flush()
            self._prepared.keep(sql, args, text)
        return text

    def _leave(self, sql: str, args: Sequence[Argument]) -> None:
        """Let a statement wait for the next one."""
        self._waiting.append(self._write(self._find(sql, args), args))

    def _write(self, text: str, args: Sequence[Argument]) -> bytes:
        """A statement with its arguments. Numbers stand for themselves: the driver looks long for
        what each is to be."""
        if args and NUMBERS.issuperset(map(type, args)):
            return (
                text % tuple([f"'{each}'" if type(each) is NumberArray else each for each in args])
            ).encode()
        return self._cursor.mogrify(text, args)

    def _run(self, sql: str, args: Sequence[Argument]) -> None:
        text = self._find(sql, args)
        if self._waiting:
            # What waits is spent only once the text is complete: an argument that cannot be sent
            # leaves it.
            self._send(self._write(text, args))
        else:
            self._cursor.execute(text, args)

    def _send(self, last: bytes) -> None:
        """Send the waiting statements and this one as one message."""
        message = b"; ".join((*self._waiting, last))
        self._waiting.clear()
        self._cursor.execute(message)

    def _flush(self) -> None:
        if self._waiting:
            self._send(self._waiting.pop())


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
        self.where = f"the PostgreSQL database {' '.join(parts)}"
        self.reader_threads = config.pool_max
        self.readers_at_start = min(config.pool_min, config.pool_max)

    def connect_reader(self) -> Connection:
        return self._connect({"default_transaction_read_only": "on"})

    def connect_writer(self) -> Connection:
        patience = int(self._config.write_lock_timeout * 1000)
        settings = {"lock_timeout": patience, "idle_in_transaction_session_timeout": patience // 3}
        # after the wait for the lock a statement must see what others committed, whatever the
        # default of the role
        return self._connect({**settings, "default_transaction_isolation": "read\\ committed"})

    def connect_node(self) -> NodeCalls | None:
        return PostgresNodeCalls(self.open({}))

    def is_worth_retrying(self, error: BaseException) -> bool:
        return is_worth_retrying(error)

    def is_outage(self, error: BaseException) -> bool:
        return is_outage(error)

    def check(self, connection: Connection) -> None:
        row = connection.query_one(
            "SELECT current_setting('server_version_num')::int, pg_encoding_to_char(encoding), datcollate "
            "FROM pg_database WHERE datname = current_database()",
            (),
        )
        version, encoding, collation = row or (0, "", "")
        if version < 130000:
            raise UnsuitableDatabase(
                f"PostgreSQL 13 or later is needed; {self.where} is on version {version // 10000}"
            )
        if encoding != "UTF8" or collation.upper() not in _COLLATIONS:
            raise UnsuitableDatabase(
                f"{self.where} has encoding {encoding} and collation {collation}, and needs UTF8 and C: make it with "
                "CREATE DATABASE … ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0"
            )

    def empty_log(self) -> bool:
        return True  # it has none beside itself that is this program's task

    def backup_before_migration(self, version: int) -> str | None:
        return None  # the operator's own backups of the server; a migration that fails is undone

    def _connect(self, settings: dict[str, str | int]) -> PostgresConnection:
        return PostgresConnection(self.open(settings))

    def open(self, settings: Mapping[str, str | int]) -> connection:
        """The driver's connection, in autocommit mode; `settings` are the server's, for this
        session."""
        opened = psycopg2.connect(describe(self._config, settings))
        opened.autocommit = True
        opened.set_client_encoding("UTF8")
        register_type(BYTES, opened)
        return opened
