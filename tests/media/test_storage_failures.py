"""Media requests when the disk is full or the object store is unavailable: a clear error, and
nothing left behind."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.engine.database import Database
from storage.media.object_store import ObjectStoreFailed
from tests.helpers.images import opened, picture
from tests.helpers.media_files import request_upload
from tests.helpers.object_store import hanging_object_store
from tests.helpers.server import TestServer, User

UPLOAD = "/_matrix/media/v3/upload"
DOWNLOAD = "/_matrix/client/v1/media/download/"
LONG = b"x" * (3 << 20)


@pytest.fixture
def alice(server: TestServer) -> Iterator[User]:
    yield server.register("alice")
    server.app.media.close_workers()


def _files(tmp_path: Path) -> list[Path]:
    return [
        each
        for each in (tmp_path / "media_store").rglob("*")
        if each.is_file() and each.name not in ("lock", "turn")
    ]


@pytest.mark.parametrize("body", [b"short", LONG])
def test_uploads_are_refused_on_a_nearly_full_disk(
    sqlite_database: Database, tmp_path: Path, body: bytes
) -> None:
    server = TestServer(tmp_path, sqlite_database, "media_min_free_disk: 1000000T\n")
    answer = request_upload(server.register("alice"), body)
    assert (answer.status, answer.errcode) == (507, "M_UNKNOWN")
    assert "no room" in answer.json["error"]
    assert _files(tmp_path) == []


def test_thumbnails_are_served_but_not_stored_on_a_nearly_full_disk(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    alice = server.register("alice")
    file = request_upload(alice, picture(400, 200)).json["content_uri"].removeprefix("mxc://")
    here = _files(tmp_path)
    little = os.statvfs(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=little.f_frsize)
        )
        for _ in range(2):
            answer = alice.get(
                f"/_matrix/client/v1/media/thumbnail/{file}?width=96&height=96&method=crop"
            )
            assert (answer.status, opened(answer.body).size) == (200, (96, 96))
    assert _files(tmp_path) == here
    server.app.media.close_workers()


@pytest.mark.parametrize("body", [b"short", LONG])
def test_a_full_disk_is_reported_clearly(
    alice: User, tmp_path: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        answer = request_upload(alice, body)
    assert (answer.status, answer.errcode) == (507, "M_UNKNOWN")
    assert _files(tmp_path) == []
    assert request_upload(alice, body).status == 200


def test_a_broken_disk_is_not_reported_as_full(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = request_upload(alice, b"tea").json["content_uri"].removeprefix("mxc://")

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    answer = request_upload(alice, LONG)
    assert (answer.status, answer.errcode) == (503, "M_UNKNOWN")
    assert alice.get(DOWNLOAD + address).body == b"tea"


def test_downloads_fail_while_the_object_store_is_away(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = request_upload(alice, b"tea").json["content_uri"].removeprefix("mxc://")

    async def away(_hash: bytes) -> None:
        raise ObjectStoreFailed("there is no way there")

    monkeypatch.setattr(alice.server.app.media.contents, "open", away)
    assert alice.get(DOWNLOAD + address).status == 503


def test_a_store_that_never_answers_is_reported_in_time(
    sqlite_database: Database, tmp_path: Path
) -> None:
    with hanging_object_store() as address:
        section = (
            f"{{bucket: b, endpoint_url: {address}, access_key_id: k,"
            " secret_access_key: s, timeout: 1s}"
        )
        alice = TestServer(tmp_path, sqlite_database, f"media_object_store: {section}\n").register(
            "alice"
        )
        began = time.monotonic()
        answer = request_upload(alice, b"tea")
        assert (answer.status, answer.errcode) == (503, "M_UNKNOWN")
        assert "cannot reach its files" in answer.json["error"]
        assert time.monotonic() - began < 20
    assert _files(tmp_path) == []


def test_an_aborted_upload_leaves_nothing(alice: User, tmp_path: Path) -> None:
    connection = alice.server.client.connect()
    head = (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer"
        f" {alice.token}\r\nContent-Length: {len(LONG)}\r\n\r\n"
    )
    connection.send(head.encode() + LONG[:-5])
    assert len(_files(tmp_path)) == 1
    connection.close()
    assert _files(tmp_path) == []


def test_clients_are_redirected_to_the_object_store(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = request_upload(alice, b"tea").json["content_uri"].removeprefix("mxc://")
    asked: list[tuple[str, str]] = []

    async def elsewhere(_hash: bytes, type: str, disposition: str) -> str:
        asked.append((type, disposition))
        return "https://store.example/tea"

    monkeypatch.setattr(alice.server.app.media.contents, "get_url", elsewhere)
    answer = alice.get(f"{DOWNLOAD}{address}/my%20tea.txt")
    assert (answer.status, answer.headers["location"]) == (307, "https://store.example/tea")
    assert answer.headers["cache-control"] == "no-store"
    assert asked == [("text/plain; charset=utf-8", 'inline; filename="my tea.txt"')]


def test_old_clients_are_redirected_if_they_allow_it(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TestServer(tmp_path, sqlite_database, "enable_authenticated_media: false\n")
    alice = server.register("alice")
    address = request_upload(alice, b"tea").json["content_uri"].removeprefix("mxc://")
    small, large = (
        request_upload(alice, picture(width, 40)).json["content_uri"].removeprefix("mxc://")
        for width in (40, 400)
    )

    async def elsewhere(_hash: bytes, _type: str, _disposition: str) -> str:
        return "https://store.example/tea"

    monkeypatch.setattr(server.app.media.contents, "get_url", elsewhere)
    path = f"/_matrix/media/v3/download/{address}"
    assert server.get(path).status == 200
    assert server.get(f"{path}?allow_redirect=true").status == 307
    assert server.get(f"{path}?com.beeper.msc3860.allow_redirect=true").status == 307
    size = "width=96&height=96&method=crop"
    for file, status in ((small, 307), (large, 200)):  # one is its own thumbnail
        path = f"/_matrix/media/v3/thumbnail/{file}?{size}"
        assert server.get(path).status == 200
        assert server.get(f"{path}&allow_redirect=true").status == status
        assert alice.get(f"/_matrix/client/v1/media/thumbnail/{file}?{size}").status == status
    server.app.media.close_workers()
