"""Databases for tests. Each test has its own, made from a template; everything runs inline.

The fixtures are in `tests/conftest.py`: `database` (the test runs on SQLite and on PostgreSQL),
`sqlite_database`, `postgres_database`.
"""

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection, make_dsn

from storage.engine.database import (
    Database,
    PostgresConfig,
    SQLiteConfig,
    WriteTransaction,
    make_engine,
)
from storage.engine.executors import Executor, InlineExecutor
from storage.engine.migrate import SCHEMA, migrate
from storage.engine.observer import NullObserver, Observer
from storage.engine.postgres import PostgresEngine
from storage.engine.streams import Streams
from tests.helpers import postgres
from tests.helpers.database_reset import MOST_USES, DatabaseReset

Config = SQLiteConfig | PostgresConfig


@dataclass
class QueryCounter:
    """An observer that counts statements, for tests of the cost of requests."""

    queries: Counter[str] = field(default_factory=Counter)
    """The number of statements by the name of the read or write."""
    reads: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)
    batches: list[int] = field(default_factory=list)
    """The number of writes of each batch."""

    def read_done(self, name: str, waited: float, took: float, queries: int) -> None:
        self.reads[name] += 1
        self.queries[name] += queries

    def write_done(self, name: str, waited: float, took: float, queries: int) -> None:
        self.writes[name] += 1
        self.queries[name] += queries

    def batch_done(self, writes: int, still_waiting: int, took: float, committing: float) -> None:
        self.batches.append(writes)

    def clear(self) -> None:
        self.queries.clear()
        self.reads.clear()
        self.writes.clear()
        self.batches.clear()


def open_inline(
    config: SQLiteConfig | PostgresConfig,
    observer: Observer | None = None,
    writer: Executor | None = None,
    clock: Callable[[], float] = time.perf_counter,
    readers: Executor | None = None,
) -> Database:
    """Open a database that does everything inline, on the calling thread. The schema must exist."""
    engine = make_engine(config)
    connection = engine.connect_reader()
    row = connection.query_one("SELECT value FROM counters WHERE name = ?", ("position",))
    return Database(
        engine=engine,
        streams=Streams(int(row[0]) if row else 0),
        readers=readers or InlineExecutor(),
        writer=writer or InlineExecutor(),
        observer=observer or NullObserver(),
        clock=clock,
        open_readers=[connection],
    )


def sqlite_config(path: Path) -> SQLiteConfig:
    """Return a configuration without durability: tests don't survive a power cut anyway."""
    return SQLiteConfig(str(path), synchronous="OFF", cache_kib=2048)


@cache
def _empty_sqlite() -> bytes:
    """Return the bytes of an empty database with the newest schema."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "template.db"
        migrate(make_engine(sqlite_config(path)))
        return path.read_bytes()


def make_sqlite_template(directory: Path) -> Path:
    """Make an empty database file with the newest schema."""
    path = directory / "template.db"
    path.write_bytes(_empty_sqlite())
    return path


def copy_sqlite(template: Path, directory: Path) -> SQLiteConfig:
    """Copy the template for one test."""
    path = directory / f"{uuid4().hex}.db"
    shutil.copyfile(template, path)
    return sqlite_config(path)


def silence(streams: Streams) -> None:
    """Remove the server's listeners, as if its process was killed. Listeners of the test stay."""

    def is_of_a_test(listener: Callable[..., object]) -> bool:
        return not (getattr(listener, "__module__", None) or "").startswith(
            ("homeserver.", "federation.", "storage.")
        )

    # private: a killed process unsubscribes nothing
    streams._subscribers = tuple(entry for entry in streams._subscribers if is_of_a_test(entry[1]))
    # private: as above
    streams._watchers = tuple(entry for entry in streams._watchers if is_of_a_test(entry[1]))
    # private: as above
    streams._commit_listeners = tuple(filter(is_of_a_test, streams._commit_listeners))
    streams._remote_changes = None  # private: as above
    streams._by_topics = {}  # private: as above


class PostgresTemplates:
    """Makes and removes databases on the test server. An empty database may have been used before
    (`emptying`)."""

    def __init__(self) -> None:
        self._server = postgres.connection_parameters()
        self._connection: connection | None = None
        self._uses: Counter[str] = Counter()
        """The number of tests that used each reusable database, by name."""
        self._emptying: dict[str, DatabaseReset] = {}
        """The object that empties each reusable database, by name."""
        self._emptied: list[str] = []
        self._catalogue: tuple[Any, ...] | None = None
        schema = hashlib.sha256(
            b"".join(path.read_bytes() for path in sorted(SCHEMA.glob("*.sql")))
        ).hexdigest()[:16]
        self._template = f"mahalla_template_{schema}"
        # By default PostgreSQL 15 writes each page of the template to its WAL, which costs twice
        # as much
        self._strategy = sql.SQL(
            "STRATEGY file_copy" if self._connected().server_version >= 150000 else ""
        )
        with postgres.locked():
            if not self._run(
                sql.SQL("SELECT 1 FROM pg_database WHERE datname = {}").format(
                    sql.Literal(self._template)
                )
            ):
                self._run(sql.SQL("DROP DATABASE IF EXISTS mahalla_unfinished WITH (FORCE)"))
                self._run(
                    sql.SQL(
                        "CREATE DATABASE mahalla_unfinished ENCODING 'UTF8' LOCALE 'C' TEMPLATE"
                        " template0"
                    )
                )
                migrate(PostgresEngine(self.config("mahalla_unfinished")))
                self._run(
                    sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                        sql.Identifier("mahalla_unfinished"), sql.Identifier(self._template)
                    )
                )

    def config(self, name: str, **options: int) -> PostgresConfig:
        """Return the configuration that opens a database of the server."""
        patient = {"connect_timeout": 60}  # many tests connect at the same time
        return PostgresConfig(
            {**self._server, **patient, "dbname": name},
            pool_min=0,
            pool_max=options.get("pool_max", 2),
        )

    def create(
        self, *, empty: bool = False, encoding: str = "UTF8", like: PostgresConfig | None = None
    ) -> PostgresConfig:
        """Create a database with the newest schema, with no schema (`empty`), or as a copy of
        another database (`like`), to which nobody may be connected."""
        plain = not empty and encoding == "UTF8" and like is None
        if plain and self._emptied:
            name = self._emptied.pop()
            self._uses[name] += 1
            return self.config(name)
        name = f"mahalla_{uuid4().hex}"
        template = (
            "template0"
            if empty
            else self._template
            if like is None
            else str(like.connect["dbname"])
        )
        if template in self._emptying:
            self._emptying[template].close()
        # One worker at a time: two sessions cannot use a template at the same time.
        with postgres.locked():
            self._run(
                sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE {} {}").format(
                    sql.Identifier(name),
                    sql.Literal(encoding),
                    sql.Identifier(template),
                    self._strategy,
                )
            )
        config = self.config(name)
        if plain:
            self._uses[name] = 1
            self._emptying[name] = DatabaseReset(make_dsn(None, **config.connect))
            if self._catalogue is None:
                self._catalogue = self._emptying[name].catalogue()
        return config

    def drop(self, config: PostgresConfig) -> None:
        """Drop a database and its connections, or empty it for the next test."""
        name = str(config.connect["dbname"])
        emptying = self._emptying.get(name)
        if emptying is not None:
            if (
                self._uses[name] < MOST_USES
                and self._catalogue is not None
                and emptying.empty(self._catalogue)
            ):
                self._emptied.append(name)
                return
            self._forget(name)
        self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _forget(self, name: str) -> None:
        self._emptying.pop(name).close()
        del self._uses[name]

    def drop_connections(self, config: PostgresConfig) -> None:
        """End all connections to a database, as a restart of the server does."""
        name = sql.Literal(str(config.connect["dbname"]))
        self._run(
            sql.SQL(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = {} AND pid <> pg_backend_pid()"
            ).format(name)
        )

    def close(self) -> None:
        """Drop the databases that were kept for reuse."""
        for name in self._emptied:
            self._forget(name)
            self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        self._emptied.clear()
        self._connected().close()

    def _connected(self) -> connection:
        if self._connection is None:
            self._connection = psycopg2.connect(make_dsn(None, **self._server))
            self._connection.autocommit = True
        return self._connection

    def _run(self, statement: sql.Composable) -> bool:
        """Run a statement; return whether it returned a row."""
        with self._connected().cursor() as cursor:
            cursor.execute(statement)
            return cursor.description is not None and cursor.fetchone() is not None


async def create_things_table(
    database: Database, columns: str = "id BIGINT NOT NULL PRIMARY KEY, text TEXT, raw BYTES"
) -> None:
    """Create a table `things`, with the engine's type for bytes."""

    def make(txn: WriteTransaction) -> None:
        txn.execute("DROP TABLE IF EXISTS things")
        txn.execute(f"CREATE TABLE things ({columns.replace('BYTES', database.engine.bytes_type)})")

    await database.write("make_table", make)


def write_config_file(
    folder: Path, name: str, config: Config, server_name: str = "example.org"
) -> Path:
    if isinstance(config, SQLiteConfig):
        section = f"{{name: sqlite3, args: {{database: {config.path}}}}}"
    else:
        arguments = ", ".join(f"{name}: {value}" for name, value in config.connect.items())
        section = f"{{name: psycopg2, args: {{{arguments}}}}}"
    path = folder / name
    path.write_text(f"server_name: {server_name}\ndatabase: {section}\n")
    return path
