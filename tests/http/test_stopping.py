"""A server that stops while its database is away, or while one of its parts fails: all others end
as they should."""

import pytest
from twisted.logger import capturedLogs

from storage.engine.database import DatabaseUnavailable
from tests.conftest import run_coroutine
from tests.helpers.server import TestServer


@pytest.mark.parametrize(
    "error", [DatabaseUnavailable("it is restarted"), ZeroDivisionError()], ids=["away", "a fault"]
)
def test_what_cannot_be_written_keeps_nobody_from_ending(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ended: list[str] = []

    async def fail() -> None:
        raise error

    async def end() -> None:
        ended.append("mail")

    monkeypatch.setattr(server.app.pushers, "stop", fail)
    monkeypatch.setattr(server.app.mail, "stop", end)
    with capturedLogs() as logs:
        run_coroutine(server.app.stop(), None)
    assert ended == ["mail"]
    failures = [log for log in logs if "log_failure" in log]
    assert bool(failures) is isinstance(error, ZeroDivisionError), (
        "a database that is away is no failure of the server"
    )
    with pytest.raises(DatabaseUnavailable, match="closed"):
        run_coroutine(server.app.database.read("nothing", lambda _: None), None)
