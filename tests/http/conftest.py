"""A client of the example endpoints, and servers that scan files."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.protocol.errors import UnknownToken
from federation.protocol.ids import DeviceID, UserID
from homeserver.api.requester import Requester
from storage.engine.database import Database
from tests.helpers.http import Client, FakeTokens, client_for
from tests.helpers.media_scanning import PLUGIN, ScanningServers
from tests.helpers.object_store import RunningObjectStore, running_object_store
from tests.helpers.scanners import RunningScanners, running_scanners
from tests.helpers.server import User
from tests.http import endpoints
from tests.http.endpoints import Bell

ALICE = Requester(UserID("@alice:example.org"), DeviceID("A"), 1)


def _as(name: str, **marks: bool) -> Requester:
    return Requester(UserID(f"@{name}:example.org"), DeviceID("D"), 2, **marks)  # type: ignore[arg-type]


TOKENS = FakeTokens(
    {
        "alice": ALICE,
        "bob": _as("bob"),
        "guest": _as("guest", is_guest=True),
        "admin": _as("admin", is_admin=True),
        "locked": _as("locked", is_locked=True),
        "suspended": _as("suspended", is_suspended=True),
        "free": _as("free", rate_limited=False),
        "old": UnknownToken(soft_logout=True),
    }
)


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def client(bell: Bell) -> Client:
    return client_for([endpoints], {Bell: bell}, tokens=TOKENS)


@pytest.fixture(scope="module")
def scanners() -> Iterator[RunningScanners]:
    """A running ClamAV daemon."""
    with running_scanners() as running:
        yield running


@pytest.fixture(scope="module")
def running_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningObjectStore]:
    """A running object store."""
    with running_object_store(tmp_path_factory.mktemp("moto")) as store:
        yield store


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
    return place.server(PLUGIN + "media_scanning: {timeout: 50s, concurrency: 2}\n").register(
        "alice"
    )
