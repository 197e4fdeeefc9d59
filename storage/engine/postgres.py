"""PostgreSQL: the database that several nodes share. For PostgreSQL 13 and later, by psycopg2.

Connections are in autocommit mode and transactions are begun by hand, so that BEGIN, SAVEPOINT,
RELEASE and statements of whose result nothing is needed travel in the same message as what follows:
a batch of writes costs one round trip more at its end, not two for each write. One more at its
begin reads the counters, where other nodes write too; a node that has found them several times as
it left them takes them for that, and has it checked by what travels with the first statement.

An advisory lock is held from begin to commit of every batch: nodes write one after the other, and
so positions of the one sequence are committed in their order, and writers never wait for each
other's rows in a circle.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from io import BytesIO
from itertools import islice
from select import POLLIN, poll

import psycopg2
from psycopg2.errors import DivisionByZero, LockNotAvailable
from psycopg2.extensions import (
    TRANSACTION_STATUS_IDLE,
    TRANSACTION_STATUS_INERROR,
    TRANSACTION_STATUS_INTRANS,
    connection,
    register_type,
)

from storage.engine.head_line import PostgresHeadLine
from storage.engine.interface import (
    Connection,
    DatabaseUnavailable,
    HeadLine,
    NodeCalls,
    NotBegun,
    OthersWrote,
    Row,
    SQLValue,
    UnsuitableDatabase,
)
from storage.engine.postgres_config import PostgresConfig, describe
from storage.engine.postgres_errors import is_outage, is_worth_retrying
from storage.engine.postgres_notify import CHANNEL, PostgresNodeCalls, changed_payload
from storage.engine.postgres_statements import (
    PREPARE_WRITES,
    WRITE_LOCK,
    adapt,
    arrays_of,
    column_types,
    columns_of,
    for_all,
    for_each,
    for_each_changing,
    for_keys,
    must_change,
    values_of,
)
from storage.engine.postgres_values import BYTES, encode_rows
from storage.engine.prepared import NUMBERS, Argument, NumberArray, Prepared
from storage.engine.transaction import POSITION

MIGRATION_LOCK = WRITE_LOCK + 1

STEADY = 8
"""Batches in a row before which nobody else had written: then it is taken for granted, and found
out where it is not so."""

FEWEST_COPIED = 4
"""Rows from which on COPY, which takes a round trip more, costs less than INSERT; up to there each
has its own statement."""
AT_ONCE = 500
"""Rows that travel in one message."""

_COLLATIONS = ("C", "POSIX", "C.UTF-8", "C.UTF8")
"""Those that order text by code point, as SQLite does, and do so for ever."""


class PostgresConnection:
    """A connection to the server. See `storage.engine.interface.Connection`."""

    __slots__ = (
        "_begins",
        "_connection",
        "_counters",
        "_cursor",
        "_info",
        "_prepared",
        "_saved_at",
        "_socket",
        "_steady",
        "_trusts",
        "_waiting",
        "_writes",
    )

    def __init__(self, opened: connection) -> None:
        self._connection = opened
        self._cursor = opened.cursor()
        self._info = opened.info
        # Statements of whose results nothing is needed: they travel with the next one. And whether
        # any fails where it changes nothing.
        self._waiting: list[bytes] = []
        self._trusts = False
        # Where among them the savepoint is to be set, if any of what comes then is sent before it
        # is kept.
        self._saved_at: int | None = None
        self._prepared = Prepared()
        # Counters as they were when this connection last saw or wrote them, and how often nobody
        # had written in between.
        self._counters: dict[str, int] = {}
        self._steady = 0
        # Whether what waits begins with the begin of the transaction.
        self._begins = False
        self._writes = False
        self._socket = poll()
        self._socket.register(opened.fileno(), POLLIN)

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

    def execute_trusting(self, sql: str, args: Sequence[SQLValue]) -> None:
        self._leave(must_change(sql), adapt(args))
        self._trusts = True

    def execute_later(self, sql: str, args: Sequence[SQLValue]) -> None:
        self._leave(sql, adapt(args))

    def execute_in_later(
        self, sql: str, keys: Sequence[SQLValue], before: Sequence[SQLValue]
    ) -> None:
        self._leave(*for_keys(sql, keys, before, ()))

    def change_each(
        self, sql: str, before: Sequence[SQLValue], rows: Sequence[Sequence[SQLValue]]
    ) -> list[Row]:
        self._run(*for_all(sql, before, rows))
        return self._cursor.fetchall()

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
        self._send(
            f"COPY {table} ({names}) FROM STDIN BINARY".encode(), encode_rows(len(columns), rows)
        )

    def execute_script(self, sql: str) -> None:
        self._flush()
        self._cursor.execute(sql)

    def begin_snapshot(self) -> None:
        self._forget()
        self._waiting.append(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def end(self) -> None:
        self._forget()
        if self._connection.closed == 0 and self._info.transaction_status in (
            TRANSACTION_STATUS_INTRANS,
            TRANSACTION_STATUS_INERROR,
        ):
            self._cursor.execute("ROLLBACK")

    def begin_write(self) -> Mapping[str, int]:
        # The counters are read, or checked, by a statement of its own, which sees what was
        # committed while the lock was waited for.
        self._forget()
        if self._steady >= STEADY and not self._has_something_to_say():
            self._begins = True
            self._waiting.append(
                b"BEGIN; EXECUTE take_lock; EXECUTE check_counters (%d)" % self._sum_of_counters()
            )
            return dict(self._counters)
        if not self._writes:
            self._cursor.execute(PREPARE_WRITES)
            self._writes = True
        self._begins = True
        self._send(b"BEGIN; EXECUTE take_lock; EXECUTE read_counters")
        counters = dict(self._cursor.fetchall())
        self._steady = self._steady + 1 if counters == self._counters else 0
        self._counters = counters
        return dict(counters)

    def begin_migration(self) -> None:
        self._cursor.execute(
            "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; "
            f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"
        )

    def save(self, *, checked: bool) -> None:
        self._saved_at = None if checked else len(self._waiting)
        # by itself: where a message fails before any of it is done, that is to be there, and not
        # that of another write
        if checked:
            self._send(b"SAVEPOINT one")

    def keep(self, *, checked: bool) -> None:
        if checked:
            self._flush()
        if self._saved_at is None:
            self._waiting.append(b"RELEASE SAVEPOINT one")
        self._saved_at = None

    def undo(self) -> None:
        if self._saved_at is not None:
            del self._waiting[self._saved_at :]
            self._saved_at = None
        else:
            self._waiting.clear()
            self._cursor.execute("ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one")

    def call_nodes(self, position: int) -> None:
        self._waiting.append(
            self._cursor.mogrify("SELECT pg_notify(%s, %s)", (CHANNEL, changed_payload(position)))
        )

    def check_session(self) -> None:
        if self._has_something_to_say():
            self._cursor.execute("SELECT 1")

    def commit(self, counters: dict[str, int], looked_at: Collection[str] = ()) -> None:
        # in one message with what waits to be sent and the counters
        if self._begins:
            self._send_whole(counters, looked_at)
            return
        self._leave_counters(counters)
        self._send(b"COMMIT")
        if self._cursor.statusmessage != "COMMIT":
            # A transaction in which a statement failed is rolled back by COMMIT, without an error.
            raise DatabaseUnavailable("the transaction had failed before its commit")
        self._counters.update(counters)

    def rollback(self) -> None:
        self.end()  # where the server knows of no transaction, it would warn in its log

    def is_trusting(self) -> bool:
        return self._trusts

    def transaction_is_whole(self) -> bool:
        return self._connection.closed == 0 and (
            self._begins or self._info.transaction_status == TRANSACTION_STATUS_INTRANS
        )

    def transaction_is_open(self) -> bool:
        return self._connection.closed == 0 and (
            self._begins
            or self._info.transaction_status
            in (TRANSACTION_STATUS_INTRANS, TRANSACTION_STATUS_INERROR)
        )

    def is_usable(self) -> bool:
        return self._connection.closed == 0

    def close(self) -> None:
        self._connection.close()

    def _has_something_to_say(self) -> bool:
        """Whether the server has, unasked: most likely that it ends the session."""
        return bool(self._socket.poll(0))

    def _lock_is_free(self) -> bool:
        """Once more outside a transaction."""
        self.rollback()
        self._cursor.execute(f"SELECT pg_try_advisory_xact_lock({WRITE_LOCK})")
        return self._cursor.fetchone() == (True,)

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

    def _send_whole(self, counters: Mapping[str, int], looked_at: Collection[str]) -> None:
        """The whole transaction as one message: that is one without BEGIN and COMMIT too.
        `looked_at`: on which counters it rests."""
        before, after = self._counters.get(POSITION), counters.get(POSITION)
        if before is None or after is None:
            self._waiting[0] = (
                b"EXECUTE take_lock; EXECUTE check_counters (%d)" % self._sum_of_counters()
            )
            self._leave_counters(counters)
        else:
            self._waiting[0] = self._lock_and_move(before, after, counters, looked_at)
        try:
            self._send(self._waiting.pop())
        except psycopg2.Error as error:
            # Where the server has refused it, and the session is there, all of it is undone: as if
            # it had yet to begin.
            is_there = (
                self._connection.closed == 0
                and self._info.transaction_status == TRANSACTION_STATUS_IDLE
            )
            self._begins = is_there and error.pgcode is not None
            raise
        self._counters.update(counters)

    def _lock_and_move(
        self, before: int, after: int, counters: Mapping[str, int], looked_at: Collection[str]
    ) -> bytes:
        """What begins a transaction in which the position moves so, if it rests on nothing that
        others have changed; what saves other counters is left for its end, where that is not the
        same statement."""
        others = {*looked_at, *counters} - {POSITION}
        if not others:
            return b"EXECUTE lock_and_move (%d, %d)" % (before, after)
        if len(others) == 1 and others <= self._counters.keys():
            (name,) = others
            was = self._counters[name]
            moved = (before, after, name, was, counters.get(name, was))
            return self._cursor.mogrify("EXECUTE lock_and_move_two (%s, %s, %s, %s, %s)", moved)
        self._leave_counters({name: value for name, value in counters.items() if name != POSITION})
        return b"EXECUTE take_lock; EXECUTE check_and_move (%d, %d)" % (
            self._sum_of_counters(),
            after,
        )

    def _sum_of_counters(self) -> int:
        return sum(self._counters.values()) + len(self._counters)

    def _leave_counters(self, counters: Mapping[str, int]) -> None:
        for name, value in counters.items():
            save = (
                "EXECUTE save_counter (%s, %s)"
                if name in self._counters
                else "EXECUTE add_counter (%s, %s)"
            )
            self._waiting.append(self._cursor.mogrify(save, (name, value)))

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
        if self._waiting or self._saved_at is not None:
            # What waits is spent only once the text is complete: an argument that cannot be sent
            # leaves it.
            self._send(self._write(text, args))
        else:
            self._cursor.execute(text, args)

    def _send(self, last: bytes, copied: bytes | None = None) -> None:
        """Send what waits and then that, which copies these rows, as one message. Raises
        OthersWrote, NotBegun."""
        if self._saved_at is not None:
            self._waiting.insert(self._saved_at, b"SAVEPOINT one")
        message = b"; ".join((*self._waiting, last))
        begins = self._begins
        self._forget()
        try:
            if copied is None:
                self._cursor.execute(message)
            else:
                self._cursor.copy_expert(message, BytesIO(copied), len(copied))
        except DivisionByZero as error:
            if not begins:
                raise
            self._steady = 0
            raise OthersWrote from error
        except LockNotAvailable as error:
            if (
                not begins or self._lock_is_free()
            ):  # then it was a lock that a statement of a write had to wait for
                raise
            raise NotBegun("another process writes for too long") from error

    def _forget(self) -> None:
        self._waiting.clear()
        self._saved_at = None
        self._trusts = self._begins = False

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
        # what is checked has to be seen as it is once the lock is there, whatever the role's or the
        # database's default
        return self._connect({**settings, "default_transaction_isolation": "read\\ committed"})

    def connect_node(self) -> NodeCalls | None:
        return PostgresNodeCalls(self.open({}))

    def connect_head(self) -> HeadLine | None:
        return PostgresHeadLine(describe(self._config, {"default_transaction_read_only": "on"}))

    def is_worth_retrying(self, error: Exception) -> bool:
        return is_worth_retrying(error)

    def is_outage(self, error: Exception) -> bool:
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
