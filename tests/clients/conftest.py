"""One server process per database and module; each test has its own users."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from storage.engine.database import DatabaseConfig, PostgresConfig, SQLiteConfig
from tests.helpers.databases import PostgresTemplates
from tests.helpers.mail_servers import mail_server
from tests.helpers.real_browser import EmailLinks
from tests.helpers.real_server import RealServer, running_server
from tests.helpers.restored_server import Restorable

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def real_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    """Run the server as a process, with a durable database."""
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


@pytest.fixture(params=["sqlite", "postgresql"])
def restorable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Restorable]:
    """Run a server for one test, whose database can be restored from a backup."""
    folder = tmp_path / "server"
    templates: PostgresTemplates | None = None
    used: PostgresConfig | None = None
    if request.param == "postgresql":
        templates = request.getfixturevalue("postgres_templates")
        used = templates.create()
    with running_server(folder, used or SQLiteConfig(str(folder / "homeserver.db"))) as server:
        made = Restorable(server, folder, templates, used)
        yield made
    made.close()
    if templates is not None and used is not None:
        templates.drop(used)


@pytest.fixture(scope="module")
def email_links() -> Iterator[tuple[EmailLinks, int]]:
    """Run a mail server. Yields its handler and its port."""
    found = EmailLinks()
    with mail_server(found) as port:
        yield found, port


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Run Debian's Chromium."""
    assert CHROMIUM is not None, "Chromium is missing: run scripts/browser, which installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
