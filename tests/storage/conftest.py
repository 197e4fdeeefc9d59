"""Fixtures of the storage tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import cursor

from storage.encryption import one_time_keys
from storage.engine import writer
from storage.engine.database import PostgresConfig, SQLiteConfig, make_engine
from storage.engine.interface import Engine
from storage.engine.postgres import PostgresEngine
from tests.conftest import run_coroutine
from tests.helpers.databases import PostgresTemplates
from tests.helpers.stepped_database import SteppedDatabase
from tests.helpers.write_faults import Faults


@pytest.fixture
def empty_postgres(postgres_templates: PostgresTemplates) -> Iterator[PostgresConfig]:
    """A database without a schema."""
    config = postgres_templates.create(empty=True)
    yield config
    postgres_templates.drop(config)


@pytest.fixture
def empty_sqlite(tmp_path: Path) -> SQLiteConfig:
    """A database without a schema."""
    return SQLiteConfig(str(tmp_path / "homeserver.db"))


@pytest.fixture(params=["empty_sqlite", "empty_postgres"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine of a database without a schema, of each kind."""
    return make_engine(request.getfixturevalue(request.param))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit blocks of one-time keys to five keys."""
    monkeypatch.setattr(one_time_keys, "BLOCK_KEYS", 5)


@pytest.fixture
def faulty(
    database_config: SQLiteConfig | PostgresConfig, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[SteppedDatabase, Faults | None]]:
    """A database, and the faults of its writes; None if it has no messages that could be lost."""
    faults: Faults | None = None
    if isinstance(database_config, PostgresConfig):
        faults = received = Faults(make_engine(database_config).connect_writer())

        class FaultyCursor(cursor):
            def execute(self, query: Any, vars: Any = None) -> None:
                text = self.mogrify(query, vars) if vars else query
                message = text if isinstance(text, bytes) else text.encode()
                received.send(self, message, super().execute)

            def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
                received.send(
                    self,
                    sql,
                    lambda message: super(FaultyCursor, self).copy_expert(message, file, size),
                )

        connect = PostgresEngine.open

        def open_faulty(engine: PostgresEngine, settings: Any) -> Any:
            opened = connect(engine, settings)
            if "lock_timeout" in settings:
                opened.cursor_factory = FaultyCursor
            return opened

        monkeypatch.setattr(PostgresEngine, "open", open_faulty)
    stepped = SteppedDatabase(database_config)
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0)
    yield stepped, faults
    run_coroutine(stepped.database.close(), None)
    if faults is not None:
        faults.other.close()
