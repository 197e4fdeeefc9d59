"""Stopping while the database is unavailable or a part fails: all other parts stop properly."""

import pytest
from twisted.logger import capturedLogs

from homeserver.cluster.background import Background
from storage.engine.database import DatabaseUnavailable
from tests.conftest import run_coroutine
from tests.helpers.server import TestServer


@pytest.mark.parametrize(
    "error", [DatabaseUnavailable("it is restarted"), ZeroDivisionError()], ids=["away", "a fault"]
)
def test_a_failing_part_does_not_keep_others_from_stopping(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    stopped: list[str] = []

    async def fail() -> None:
        raise error

    async def end() -> None:
        stopped.append("mail")

    monkeypatch.setattr(server.app.pushers, "stop", fail)
    monkeypatch.setattr(server.app.email, "stop", end)
    with capturedLogs() as logs:
        run_coroutine(server.app.stop(), None)
    assert stopped == ["mail"]
    failures = [log for log in logs if "log_failure" in log]
    assert bool(failures) is isinstance(error, ZeroDivisionError), (
        "an unavailable database is not logged as a failure"
    )
    with pytest.raises(DatabaseUnavailable, match="closed"):
        run_coroutine(server.app.database.read("nothing", lambda _: None), None)


def test_work_that_cannot_be_cancelled_does_not_keep_others_from_stopping() -> None:
    stopped: list[str] = []

    class Broken:
        def stop(self) -> None:
            raise ZeroDivisionError

    class Pending:
        async def stop(self) -> None:
            stopped.append("pending")

    with capturedLogs() as logs:
        run_coroutine(Background(start=[], cancel=[Broken()], stop=[Pending()]).stop(), None)
    assert stopped == ["pending"]
    assert any("log_failure" in log for log in logs)
