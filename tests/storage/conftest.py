"""Fixtures of the storage tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.encryption import one_time_keys
from storage.engine.database import PostgresConfig, SQLiteConfig, make_engine
from storage.engine.interface import Engine
from tests.helpers.databases import PostgresTemplates
from tests.helpers.object_store import Bucket, RunningObjectStore, running_object_store


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningObjectStore]:
    """A running object store by a third party."""
    with running_object_store(tmp_path_factory.mktemp("moto")) as store:
        yield store


@pytest.fixture
def bucket(running: RunningObjectStore) -> Bucket:
    return running.bucket()


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
