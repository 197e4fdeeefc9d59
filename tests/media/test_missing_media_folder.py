"""The media folder vanishes while the server runs, as when its disk is unmounted, and comes
back."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import provider

from tests.helpers.media_files import request_upload
from tests.helpers.server import TestServer, User

SWEEPS_WITHIN = 3700.0


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The log lines of warnings and errors; a traceback is logged as "traceback"."""
    found: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_level"].name in ("warn", "error", "critical"):
            found.append("traceback" if "log_failure" in event else str(formatEvent(event)))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def upload(user: User, data: bytes) -> tuple[int, str]:
    """The status, and the path of the file."""
    answer = request_upload(user, data)
    return answer.status, answer.json.get("content_uri", "").removeprefix("mxc://")


@pytest.mark.parametrize("leaves_a_mount_point", [False, True])
def test_requests_fail_clearly_while_the_media_folder_is_missing(
    server: TestServer, lines: list[str], leaves_a_mount_point: bool
) -> None:
    alice = server.register("alice")
    status, address = upload(alice, b"tea")
    assert status == 200
    path = f"/_matrix/client/v1/media/download/{address}"
    folder = server.app.config.folder / server.app.config.storage.media_store_path
    away = Path(f"{folder}.away")
    folder.rename(away)
    if leaves_a_mount_point:
        folder.mkdir()

    assert alice.get(path).status == 503, "it is there, and cannot be reached"
    assert upload(alice, b"coffee")[0] == 503
    assert upload(alice, b"c" * 3_000_000)[0] == 503
    server.app.jobs.start()
    server.clock.pump([10.0] * int(SWEEPS_WITHIN / 10))

    assert [line for line in lines if "sweep_media_folder" in line]
    for line in lines:
        assert str(folder) in line
        assert "the media folder is missing: mount its disk" in line
        assert "\n" not in line
    assert len(lines) < 12, "not one each minute"

    if leaves_a_mount_point:
        assert all(path.stat().st_size == 0 for path in folder.rglob("*") if path.is_file()), (
            "nothing is kept under it"
        )
        shutil.rmtree(folder)
    away.rename(folder)

    assert alice.get(path).status == 200
    assert upload(alice, b"coffee")[0] == 200
