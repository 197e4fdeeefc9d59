"""A server that stops while its database is away, or while one of its parts fails: all others end as they should."""

from typing import Any

import pytest
from twisted.logger import capturedLogs

from storage.database import Database, DatabaseUnavailable
from tests.conftest import run_coroutine
from tests.helpers.server import TestServer


@pytest.mark.parametrize(
    "error", [DatabaseUnavailable("it is restarted"), ZeroDivisionError()], ids=["away", "a fault"]
)
def test_what_cannot_be_written_keeps_nobody_from_ending(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    server.app.start_jobs()
    alice = server.register("alice")
    alice.post("/_matrix/client/v3/createRoom")
    ended: list[str] = []

    async def fail(*_args: Any, **_kwargs: Any) -> None:
        raise error

    async def end() -> None:
        ended.append("mail")

    monkeypatch.setattr(Database, "write", fail)
    monkeypatch.setattr(server.app.mail, "stop", end)
    with capturedLogs() as logs:
        server.run(server.app.stop())
    assert ended == ["mail"]
    failures = [log for log in logs if "log_failure" in log]
    assert bool(failures) is isinstance(error, ZeroDivisionError), "a database that is away is no failure of the server"
    with pytest.raises(DatabaseUnavailable, match="closed"):
        run_coroutine(server.app.database.read("nothing", lambda _: None), None)
