"""Databases whose writes run when a test says so."""

from collections.abc import Iterator
from typing import Any

import pytest

from storage.engine.database import PostgresConfig, SQLiteConfig
from storage.engine.postgres import PostgresEngine
from tests.conftest import run_coroutine
from tests.helpers.stepped_database import CountingCursor, SteppedDatabase


@pytest.fixture
def stepped(database_config: SQLiteConfig | PostgresConfig) -> Iterator[SteppedDatabase]:
    """A database whose writes wait for `step`."""
    stepped = SteppedDatabase(database_config)
    yield stepped
    run_coroutine(stepped.database.close(), None)


@pytest.fixture
def nodes(
    postgresql: PostgresConfig, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[SteppedDatabase, SteppedDatabase]]:
    """Two processes on one database. The messages of both are counted."""
    connect = PostgresEngine.open

    def open_counting(engine: PostgresEngine, settings: Any) -> Any:
        opened = connect(engine, settings)
        opened.cursor_factory = CountingCursor
        return opened

    monkeypatch.setattr(PostgresEngine, "open", open_counting)
    CountingCursor.messages = 0
    pair = SteppedDatabase(postgresql), SteppedDatabase(postgresql)
    yield pair
    for each in pair:
        run_coroutine(each.database.close(), None)
