"""One server process per database and module; each story has people of its own."""

from collections.abc import Iterator

import pytest

from storage.database import DatabaseConfig, SQLiteConfig
from tests.helpers.databases import PostgresTemplates
from tests.helpers.real_server import RealServer, running_server


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def real_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The server as a process, with a database as production has it."""
    folder = tmp_path_factory.mktemp("server")
    database: DatabaseConfig = SQLiteConfig(str(folder / "homeserver.db"))
    if request.param == "sqlite":
        with running_server(folder, database) as server:
            yield server
        return
    templates: PostgresTemplates = request.getfixturevalue("postgres_templates")
    config = templates.create()
    try:
        with running_server(folder, config) as server:
            yield server
    finally:
        templates.drop(config)
