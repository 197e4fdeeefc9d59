"""What several of these tests need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.encryption import claim_log, one_time_keys
from storage.engine import postgres, writer
from storage.engine.database import PostgresConfig, SQLiteConfig, make_engine
from storage.engine.interface import Engine
from tests.helpers.databases import PostgresTemplates
from tests.helpers.object_store import Bucket, RunningObjectStore, running_object_store


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningObjectStore]:
    """An object store that others wrote."""
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
    """Of a database without a schema, of each kind."""
    return make_engine(request.getfixturevalue(request.param))


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block that has to be read, the next two keys or three are known; who has written twice
    believes to be alone; claims are gathered after three, and settled where they are of more than
    two blocks."""
    monkeypatch.setattr(one_time_keys, "READ_AHEAD", 40)
    monkeypatch.setattr(one_time_keys, "MOST_READ_AHEAD", 100)
    monkeypatch.setattr(writer, "LONG_ENOUGH", 2)
    monkeypatch.setattr(postgres, "STEADY", 2)
    monkeypatch.setattr(one_time_keys, "KEYS_A_BLOCK", 5)
    monkeypatch.setattr(claim_log, "MOST_CLAIMS", 3)
    monkeypatch.setattr(claim_log, "MOST_MARKS", 5)
    monkeypatch.setattr(claim_log, "MOST_GATHERED", 2)
