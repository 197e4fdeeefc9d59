"""Servers that scan files, a ClamAV daemon and an object store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.engine.database import Database
from tests.helpers.media_scanning import PLUGIN, ScanningServers
from tests.helpers.scanners import RunningScanners, running_scanners
from tests.helpers.server import User


@pytest.fixture(scope="module")
def scanners() -> Iterator[RunningScanners]:
    """A running ClamAV daemon."""
    with running_scanners() as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, sqlite_database: Database) -> Iterator[ScanningServers]:
    """A factory of servers that scan files."""
    place = ScanningServers(tmp_path, sqlite_database)
    yield place
    for server in place.servers:
        server.app.media.close_workers()


@pytest.fixture
def held(place: ScanningServers) -> User:
    """A user on a server with a scanning plug-in that the test controls."""
    return place.server(PLUGIN + "media_scanning: {time_limit: 50s, concurrency: 2}\n").register(
        "alice"
    )
