"""Fixtures: a server with the OAuth 2.0 API, and the user Alice."""

from pathlib import Path

import pytest

from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.oauth import CONFIG, Program
from tests.helpers.server import TestServer


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    server = TestServer(tmp_path, sqlite_database, CONFIG)
    server.register("alice")
    return server


@pytest.fixture
def browser(server: TestServer) -> Browser:
    return Browser(server)


@pytest.fixture
def program(server: TestServer) -> Program:
    return Program(server)
