"""kill -9 between storing and scanning: acknowledged files are there, are not served unscanned, and
are scanned after the restart."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.engine.database import Database, SQLiteConfig
from tests.helpers.databases import open_inline
from tests.helpers.federated_media import DOWNLOAD
from tests.helpers.http import Answer
from tests.helpers.media_scanning import MINE, TEA, UPLOAD, do_jobs
from tests.helpers.scanners import EICAR, RunningScanners, running_scanners
from tests.helpers.server import TestServer
from tests.helpers.server_process import RunningServer, ServerFiles


@contextmanager
def silent_scanner(path: str) -> Iterator[threading.Event]:
    """Run a scanner that accepts all data and never answers. The event is set when it gets data."""
    received = threading.Event()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    connections = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connections.append(connection)
            received.set()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(60)
        for each in connections:
            each.close()
        os.unlink(path)


@pytest.fixture
def scanners() -> Iterator[RunningScanners]:
    with running_scanners() as running:
        running.stop_clamd()
        yield running


def _upload(server: RunningServer, token: str, body: bytes) -> str:
    connection = server.connect()
    connection.request(
        "POST", UPLOAD, body, {"Authorization": f"Bearer {token}", "Content-Type": "text/plain"}
    )
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    assert answer.status == 200, said
    return said.decode().split("mxc://")[1].rstrip('"}')


def test_files_are_scanned_after_a_kill_between_storing_and_scanning(
    sqlite: SQLiteConfig, scanners: RunningScanners, tmp_path: Path
) -> None:
    files = ServerFiles(
        tmp_path / "server",
        sqlite,
        {"media_scanning": {"clamd": scanners.unix, "upload_wait": 100}},
    )
    bodies = (EICAR, TEA, EICAR + b" nobody asks", b"nobody asks")
    try:
        with silent_scanner(scanners.unix.removeprefix("unix:")) as received:
            server = files.start()
            token = server.register("alice")
            addresses = [_upload(server, token, body) for body in bodies]
            assert received.wait(60)
            waiting = server.request("GET", f"{DOWNLOAD}/{addresses[0]}?timeout_ms=50", token=token)
            assert (waiting.status, waiting.json["errcode"]) == (504, "M_NOT_YET_UPLOADED")
            server.kill()
            server = files.start()
            still = server.request("GET", f"{DOWNLOAD}/{addresses[0]}?timeout_ms=50", token=token)
            assert still.status == 504
            server.kill()
        scanners.start_clamd()
        server = files.start()
        asked = [server.request("GET", f"{DOWNLOAD}/{each}", token=token) for each in addresses[:2]]
        assert [each.status for each in asked] == [403, 200]
        assert asked[1].body == TEA
        server.stop()
    finally:
        files.end()

    # files without a request are scanned by the job, when the uploading process must have ended
    database = open_inline(sqlite)
    _scan_what_is_left(database, scanners, tmp_path, token, addresses)


def _scan_what_is_left(
    database: Database, scanners: RunningScanners, tmp_path: Path, token: str, addresses: list[str]
) -> None:
    repeated = tmp_path / "again"
    repeated.mkdir()
    config = (
        f"media_store_path: {tmp_path}/server/media_store\nmedia_scanning:"
        f" {{clamd: '{scanners.unix}'}}\n"
    )
    server = TestServer(repeated, database, config, server_name="localhost", now=4_000_000_000.0)
    do_jobs(server)

    def get(path: str) -> Answer:
        return server.client.request("GET", path, token=token)

    assert sorted(each["scan"]["state"] for each in get(MINE).json["media"]) == [
        "clean",
        "clean",
        "harmful",
        "harmful",
    ]
    assert [get(f"{DOWNLOAD}/{each}").status for each in addresses] == [403, 200, 403, 200]
    server.app.media.close_workers()
