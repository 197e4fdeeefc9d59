"""Servers that scan files, and a plug-in whose verdicts a test decides."""

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from homeserver.services.plugins.hooks import FileToCheck, hookimpl
from storage.engine.database import Database
from tests.helpers.http import Pending
from tests.helpers.scanners import RunningScanners
from tests.helpers.server import TestServer, User

UPLOAD = "/_matrix/media/v3/upload"
OURS = "/_mahalla/admin/v1/media"
MINE = "/_mahalla/client/v1/media"
TEA = b"green tea"
PLUGIN = "plugins: [{module: tests.helpers.media_scanning.HeldVerdicts}]\n"


class HeldVerdicts:
    """A plug-in that returns its verdict on a file when the test resolves it."""

    waiting: list["Deferred[str | None]"]
    rules = "1"
    is_quick = False
    seen: list[bytes]

    def __init__(self, _config: dict[str, object]) -> None:
        HeldVerdicts.waiting, HeldVerdicts.seen, HeldVerdicts.rules, HeldVerdicts.is_quick = (
            [],
            [],
            "1",
            False,
        )

    @hookimpl
    def get_file_rules(self) -> str:
        return HeldVerdicts.rules

    @hookimpl
    async def check_file(self, file: FileToCheck) -> str | None:
        data = b"".join([piece async for piece in file.pieces()])
        assert len(data) == file.size
        HeldVerdicts.seen.append(data)
        if HeldVerdicts.is_quick:
            return None
        said: Deferred[str | None] = Deferred()
        HeldVerdicts.waiting.append(said)
        return await said


class FailingScanner:
    """A plug-in that fails."""

    def __init__(self, _config: dict[str, object]) -> None:
        """Take no settings."""

    @hookimpl
    def check_file(self, file: FileToCheck) -> str | None:
        raise RuntimeError("no")


class ScanningServers:
    """Creates servers on one folder and database."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self.database = database
        self.servers: list[TestServer] = []

    def server(self, config: str, **options: Any) -> TestServer:
        made = TestServer(self.folder, self.database, config, seed=len(self.servers) + 1, **options)
        self.servers.append(made)
        return made


def clamd(scanners: RunningScanners, further: str = "") -> str:
    return f"media_scanning: {{clamd: '{scanners.unix}'{further}}}\n"


def begin_upload(user: User, body: bytes) -> Pending:
    return user.server.client.start("POST", UPLOAD, token=user.token, body=body)


def latest(user: User) -> dict[str, Any]:
    """Return the user's view of their latest upload."""
    found: dict[str, Any] = user.get(MINE).json["media"][0]
    return found


def metric(server: TestServer, name: str, **labels: str) -> float:
    return server.registry.get_sample_value(name, labels) or 0.0


def do_jobs(server: TestServer) -> None:
    """Run one step of each scanning job."""
    for job in server.app.media.scanning.jobs():
        server.run(_step(job.step))


async def _step(step: Any) -> int:
    done: int = await step(100)
    return done
