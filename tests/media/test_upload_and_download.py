"""Uploads and downloads, through the complete server."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from storage.engine.database import Database
from storage.media.media import MediaStore
from tests.helpers.http import Answer, Pending
from tests.helpers.images import picture
from tests.helpers.media_files import stored_contents
from tests.helpers.server import TestServer, User

UPLOAD = "/_matrix/media/v3/upload"
CREATE = "/_matrix/media/v1/create"
DOWNLOAD = "/_matrix/client/v1/media/download/"
PUBLIC = "/_matrix/media/v3/download/"
TEXT = "text/plain; charset=utf-8"
HOUR = 3600


def _send(
    user: User,
    method: str,
    path: str,
    body: bytes | None = None,
    type: str | None = TEXT,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    lines = {
        **(headers or {}),
        **({"Content-Type": type} if type is not None and body is not None else {}),
    }
    return user.server.client.request(method, path, token=user.token, body=body, headers=lines)


def _upload(user: User, body: bytes, type: str | None = TEXT, query: str = "") -> str:
    """Server name and media id of a new file."""
    answer = _send(user, "POST", UPLOAD + query, body, type)
    assert answer.status == 200, answer.body
    found = re.fullmatch(r"mxc://(example\.org/[A-Za-z]{24})", answer.json["content_uri"])
    assert found is not None
    return found[1]


def _create(user: User) -> str:
    answer = user.post(CREATE)
    assert answer.status == 200, answer.body
    return str(answer.json["content_uri"]).removeprefix("mxc://")


# Uploading and downloading.


@pytest.mark.parametrize("version", ["v3", "r0", "v1"])
def test_a_file_is_downloaded_unchanged(alice: User, bob: User, version: str) -> None:
    answer = _send(alice, "POST", f"/_matrix/media/{version}/upload?filename=tea.txt", b"green")
    assert answer.status == 200
    got = bob.get(DOWNLOAD + answer.json["content_uri"].removeprefix("mxc://"))
    assert (got.status, got.body) == (200, b"green")
    assert got.headers["content-type"] == TEXT
    assert got.headers["content-disposition"] == "inline; filename=tea.txt"
    assert got.headers["content-length"] == "5"


def test_downloads_have_security_headers(alice: User) -> None:
    headers = alice.get(DOWNLOAD + _upload(alice, b"x")).headers
    assert headers["content-security-policy"].startswith(
        "sandbox; default-src 'none'; script-src 'none';"
    )
    assert headers["cross-origin-resource-policy"] == "cross-origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "private, max-age=86400, immutable"


def test_a_long_file_is_streamed(alice: User, tmp_path: Path) -> None:
    body = bytes(range(256)) * 12_000
    got = alice.get(DOWNLOAD + _upload(alice, body))
    assert got.body == body
    assert len(stored_contents(tmp_path)) == 1
    assert not list((tmp_path / "media_store" / "incoming").iterdir())


def test_an_empty_file_is_uploaded_and_downloaded(alice: User) -> None:
    got = alice.get(DOWNLOAD + _upload(alice, b""))
    assert (got.status, got.body, got.headers["content-length"]) == (200, b"", "0")


def test_equal_files_are_stored_once_with_their_own_metadata(
    alice: User, bob: User, tmp_path: Path
) -> None:
    first = _upload(alice, b"same", "text/plain", "?filename=a.txt")
    second = _upload(bob, b"same", "text/html", "?filename=b.html")
    assert first != second
    assert len(stored_contents(tmp_path)) == 1
    assert alice.get(DOWNLOAD + first).headers["content-disposition"] == "inline; filename=a.txt"
    assert (
        alice.get(DOWNLOAD + second).headers["content-disposition"] == "attachment; filename=b.html"
    )


@pytest.mark.parametrize(
    ("claimed", "type", "disposition"),
    [
        ("image/png", "image/png", "inline"),
        ("IMAGE/PNG", "IMAGE/PNG", "inline"),
        ("text/plain", "text/plain; charset=utf-8", "inline"),
        ("text/html", "text/html; charset=utf-8", "attachment"),
        ("image/svg+xml", "image/svg+xml", "attachment"),
        ("application/pdf", "application/pdf", "attachment"),
        ("application/javascript", "application/javascript", "attachment"),
        ("image/png; x=y", "image/png; x=y", "inline"),
        ("image/png, text/html", "application/octet-stream", "attachment"),
        ("no type", "application/octet-stream", "attachment"),
        ("x/" + "y" * 300, "application/octet-stream", "attachment"),
        (None, "application/octet-stream", "attachment"),
    ],
)
def test_only_harmless_types_are_served_inline(
    alice: User, claimed: str | None, type: str, disposition: str
) -> None:
    headers = alice.get(DOWNLOAD + _upload(alice, picture(9, 9), claimed)).headers
    assert (headers["content-type"], headers["content-disposition"]) == (type, disposition)


@pytest.mark.parametrize(
    ("claimed", "body", "type"),
    [
        ("image/png", b"<script>alert(1)</script>", None),
        ("image/jpeg", bytes(range(256)), None),  # as an encrypted file looks
        ("image/webp", b"", None),
        ("image/png", picture(9, 9, "JPEG"), "image/png"),  # one picture for another
        ("image/avif", picture(9, 9, "AVIF"), "image/avif"),
        ("image/gif", picture(9, 9, "GIF"), "image/gif"),
        ("image/webp", picture(9, 9, "WEBP"), "image/webp"),
        ("image/svg+xml", b"<svg/>", "image/svg+xml"),  # for saving, as ever
        ("video/mp4", b"\xef\xbb\xbf <!DOCTYPE html><script>", None),
        ("video/mp4", b"PK\x03\x04" + bytes(99), None),
        ("video/mp4", b"\0\0\0\x18ftypmp42" + bytes(99), "video/mp4"),
        ("video/quicktime", b"\0\0\0\x08wide" + bytes(99), "video/quicktime"),
        ("audio/mpeg", picture(9, 9), None),
        ("audio/ogg", b"OggS" + bytes(99), "audio/ogg"),
        ("audio/webm", b"\x1aE\xdf\xa3" + bytes(99), "audio/webm"),
        ("text/plain", b"\n<HTML><body>", "text/html; charset=utf-8"),
        ("text/plain; charset=utf-16", b"<!-- a -->", "text/html; charset=utf-8"),
        ("text/plain", b"a < b, <bold>", "text/plain; charset=utf-8"),
        ("text/plain", b"<?xml version='1.0'?><a/>", "text/plain; charset=utf-8"),
        ("application/json", b"<p>", "application/json"),
        ("video/webm", b"<?xml version='1.0'?><a/>", None),
    ],
)
def test_an_obviously_wrong_content_type_is_not_served(
    alice: User, claimed: str, body: bytes, type: str | None
) -> None:
    got = alice.get(DOWNLOAD + _upload(alice, body, claimed))
    assert got.body == body
    assert got.headers["content-type"] == (type or "application/octet-stream")
    shown = type is not None and not type.startswith(("text/html", "image/svg"))
    assert got.headers["content-disposition"] == ("inline" if shown else "attachment")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.png", "filename=a.png"),
        ("my%20file%20(1).png", 'filename="my file (1).png"'),
        ("choy%20%D1%87%D0%BE%D0%B9.txt", "filename*=utf-8''choy%20%D1%87%D0%BE%D0%B9.txt"),
        ("a%22%3B%20x%3Dy%5C", "filename*=utf-8''a%22%3B%20x%3Dy%5C"),
        ("a%0D%0AX-Evil:%201", "filename*=utf-8''a%0D%0AX-Evil%3A%201"),
        ("..%2F..%2Fetc%2Fpasswd", "filename*=utf-8''..%2F..%2Fetc%2Fpasswd"),
    ],
)
def test_file_names_are_encoded_safely(alice: User, name: str, said: str) -> None:
    named = _upload(alice, b"x", query=f"?filename={name}")
    assert alice.get(DOWNLOAD + named).headers["content-disposition"] == "inline; " + said
    asked = alice.get(f"{DOWNLOAD}{_upload(alice, b'x')}/{name}")
    assert asked.headers["content-disposition"] == "inline; " + said
    assert "x-evil" not in asked.headers


def test_a_file_name_that_is_too_long_is_refused(alice: User) -> None:
    assert (
        _send(alice, "POST", f"{UPLOAD}?filename={'x' * 1025}", b"x").errcode == "M_INVALID_PARAM"
    )
    assert alice.get(f"{DOWNLOAD}{_upload(alice, b'x')}/{'x' * 1025}").errcode == "M_INVALID_PARAM"


@pytest.mark.parametrize(
    "path",
    ["/_matrix/client/v1/media/config", "/_matrix/media/v3/config", "/_matrix/media/r0/config"],
)
def test_the_largest_upload_size_is_published(alice: User, path: str) -> None:
    assert alice.get(path).json == {"m.upload.size": 50 * 1024 * 1024}


def test_a_file_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, "max_upload_size: 10\n")
    alice = server.register("alice")
    assert alice.get("/_matrix/client/v1/media/config").json == {"m.upload.size": 10}
    assert alice.get(DOWNLOAD + _upload(alice, b"0123456789")).body == b"0123456789"
    head = (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer"
        f" {alice.token}\r\nContent-Length: 11\r\n\r\n"
    )
    connection = server.client.connect()
    connection.send(head.encode())
    (answer,) = connection.answers()
    assert (answer.status, answer.errcode) == (413, "M_TOO_LARGE")
    connection.close()
    chunked = _send(
        alice,
        "POST",
        UPLOAD,
        b"b\r\n01234567890\r\n0\r\n\r\n",
        headers={"Transfer-Encoding": "chunked"},
    )
    assert chunked.status >= 400


# Who may.


def test_an_upload_without_any_token_is_refused_before_it_is_read(server: TestServer) -> None:
    connection = server.client.connect()
    connection.send(
        f"POST {UPLOAD} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode()
    )
    (answer,) = connection.answers()
    assert (answer.status, answer.errcode) == (401, "M_MISSING_TOKEN")
    connection.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", UPLOAD),
        ("POST", CREATE),
        ("PUT", UPLOAD + "/example.org/abc"),
        ("GET", DOWNLOAD + "example.org/abc"),
    ],
)
def test_a_wrong_token_is_refused(server: TestServer, method: str, path: str) -> None:
    answer = server.client.request(
        method, path, token="wrong", body=b"x" if method != "GET" else None
    )
    assert (answer.status, answer.errcode) == (401, "M_UNKNOWN_TOKEN")


@pytest.mark.parametrize(
    "path",
    ["example.org/unknown", "example.org/a.b", "example.org/..%2F..%2Fx", "remote.example/a.b"],
)
def test_unknown_files_are_not_found(server: TestServer, alice: User, path: str) -> None:
    for answer in (alice.get(DOWNLOAD + path), server.get(PUBLIC + path)):
        assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")


def test_an_invalid_server_name_is_refused(alice: User) -> None:
    assert alice.get(DOWNLOAD + "..%2Fx/abc").errcode == "M_INVALID_PARAM"


def test_frozen_media_endpoints_serve_no_files_without_a_token(
    server: TestServer, alice: User
) -> None:
    file = _upload(alice, b"x")
    for version in ("v3", "r0", "v1"):
        answer = server.get(f"/_matrix/media/{version}/download/{file}")
        assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")
    assert (
        server.get(f"/_matrix/media/v3/thumbnail/{file}?width=1&height=1").errcode == "M_NOT_FOUND"
    )


def test_files_from_before_the_freeze_stay_open(tmp_path: Path, sqlite_database: Database) -> None:
    before = TestServer(tmp_path, sqlite_database, "enable_authenticated_media: false\n")
    file = _upload(before.register("alice"), b"x", query="?filename=a")
    assert before.get(PUBLIC + file).body == b"x"
    after = TestServer(tmp_path, sqlite_database, seed=2)
    answer = after.get(PUBLIC + file + "/b")
    assert (answer.status, answer.body) == (200, b"x")
    assert answer.headers["cache-control"] == "public, max-age=86400, immutable"
    assert answer.headers["content-disposition"] == "inline; filename=b"


@pytest.mark.parametrize(
    ("day", "statuses"), [("2023-11-15", [200, 404]), ("2023-11-16", [200, 200])]
)
def test_files_can_be_frozen_from_a_date_on(
    tmp_path: Path, sqlite_database: Database, day: str, statuses: list[int]
) -> None:
    before = TestServer(tmp_path, sqlite_database, "enable_authenticated_media: false\n")
    alice = before.register("alice")
    files = [_upload(alice, b"early")]
    before.clock.advance(24 * HOUR)
    files.append(_upload(alice, b"late"))
    after = TestServer(tmp_path, sqlite_database, f'legacy_media_freeze_date: "{day}"\n', seed=2)
    assert [after.get(PUBLIC + file).status for file in files] == statuses
    assert [
        after.client.request("GET", DOWNLOAD + file, token=alice.token).status for file in files
    ] == [200, 200]


def test_a_uri_reserved_before_the_freeze_and_filled_after_it_is_frozen(
    tmp_path: Path, sqlite_database: Database
) -> None:
    before = TestServer(tmp_path, sqlite_database, "enable_authenticated_media: false\n")
    alice = before.register("alice")
    file = alice.post("/_matrix/media/v1/create").json["content_uri"].removeprefix("mxc://")
    after = TestServer(tmp_path, sqlite_database, seed=2)
    filled = after.client.request(
        "PUT", f"/_matrix/media/v3/upload/{file}", token=alice.token, body=b"x"
    )
    assert filled.status == 200
    assert after.get(PUBLIC + file).errcode == "M_NOT_FOUND"
    assert after.client.request("GET", DOWNLOAD + file, token=alice.token).body == b"x"


def test_the_endpoints_without_authentication_can_be_disabled(
    tmp_path: Path, sqlite_database: Database
) -> None:
    before = TestServer(tmp_path, sqlite_database, "enable_authenticated_media: false\n")
    alice = before.register("alice")
    file = _upload(alice, b"x")
    after = TestServer(tmp_path, sqlite_database, "legacy_media_endpoints: false\n", seed=2)
    for path in (PUBLIC + file, f"/_matrix/media/r0/thumbnail/{file}?width=9&height=9"):
        answer = after.client.request("GET", path, token=alice.token)
        assert (answer.status, answer.errcode) == (404, "M_UNRECOGNIZED")
    assert after.client.request("GET", DOWNLOAD + file, token=alice.token).body == b"x"
    uploaded = after.client.request("POST", UPLOAD, token=alice.token, body=b"y")
    assert uploaded.status == 200


async def test_the_last_access_is_recorded_to_the_hour(server: TestServer, alice: User) -> None:
    file = _upload(alice, b"x")
    store = MediaStore(server.app.database)
    media_id = file.partition("/")[2]
    noted = []
    for seconds in (HOUR - 1, 1, 5):
        server.clock.advance(seconds)
        assert alice.get(DOWNLOAD + file).status == 200
        row = (await store.get_media([media_id]))[media_id]
        noted.append(row.last_access_ts - row.created_ts)
    assert noted == [0, HOUR * 1000, HOUR * 1000]


# Reserving.


def test_a_reserved_uri_is_filled_once(server: TestServer, alice: User) -> None:
    answer = alice.post(CREATE)
    assert answer.json["unused_expires_at"] == int(server.clock.seconds() * 1000) + 24 * HOUR * 1000
    file = answer.json["content_uri"].removeprefix("mxc://")
    first = _send(alice, "PUT", f"{UPLOAD}/{file}?filename=a.txt", b"tea")
    assert (first.status, first.json) == (200, {})
    second = _send(alice, "PUT", f"{UPLOAD}/{file}", b"coffee")
    assert (second.status, second.errcode) == (409, "M_CANNOT_OVERWRITE_MEDIA")
    got = alice.get(DOWNLOAD + file)
    assert (got.body, got.headers["content-disposition"]) == (b"tea", "inline; filename=a.txt")


def test_a_file_that_was_uploaded_is_not_overwritten(alice: User) -> None:
    answer = _send(alice, "PUT", f"{UPLOAD}/{_upload(alice, b'tea')}", b"coffee")
    assert (answer.status, answer.errcode) == (409, "M_CANNOT_OVERWRITE_MEDIA")


def test_another_user_cannot_fill_a_reserved_uri(alice: User, bob: User) -> None:
    answer = _send(bob, "PUT", f"{UPLOAD}/{_create(alice)}", b"x")
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")


@pytest.mark.parametrize("file", ["example.org/unknown", "remote.example/abc"])
def test_an_upload_to_an_unreserved_uri_is_not_found(alice: User, file: str) -> None:
    answer = _send(alice, "PUT", f"{UPLOAD}/{file}", b"x")
    assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")


def test_a_reservation_expires(server: TestServer, alice: User) -> None:
    file = _create(alice)
    server.clock.advance(24 * HOUR)
    assert _send(alice, "PUT", f"{UPLOAD}/{file}", b"x").errcode == "M_NOT_FOUND"
    assert alice.get(DOWNLOAD + file + "?timeout_ms=0").errcode == "M_NOT_FOUND"


async def test_expired_reservations_are_deleted(server: TestServer, alice: User) -> None:
    _create(alice)
    assert await server.app.media.repository.do_remove_expired(10) == 0
    server.clock.advance(24 * HOUR)
    assert await server.app.media.repository.do_remove_expired(10) == 1


def test_the_number_of_reservations_is_limited(server: TestServer, alice: User, bob: User) -> None:
    files = [_create(alice) for _ in range(5)]
    answer = alice.post(CREATE)
    assert (answer.status, answer.errcode) == (429, "M_LIMIT_EXCEEDED")
    _create(bob)
    _send(alice, "PUT", f"{UPLOAD}/{files[0]}", b"x")
    _create(alice)
    assert alice.post(CREATE).status == 429
    server.clock.advance(24 * HOUR)
    _create(alice)


def test_reservations_are_rate_limited(tmp_path: Path, sqlite_database: Database) -> None:
    config = "max_pending_media_uploads: 100\nrc_media_create: {per_second: 1, burst_count: 2}\n"
    alice = TestServer(tmp_path, sqlite_database, config).register("alice")
    assert [alice.post(CREATE).status for _ in range(3)] == [200, 200, 429]


# Waiting.


def _waiting(alice: User, query: str = "") -> tuple[str, Pending]:
    file = _create(alice)
    return file, alice.start("GET", DOWNLOAD + file + query)


def test_a_download_waits_for_the_upload(server: TestServer, alice: User) -> None:
    file, pending = _waiting(alice)
    server.clock.advance(19)
    assert not pending.done
    _send(alice, "PUT", f"{UPLOAD}/{file}", b"tea")
    assert pending.answer.body == b"tea"


@pytest.mark.parametrize(
    ("query", "seconds"), [("", 20), ("?timeout_ms=3000", 3), ("?timeout_ms=900000", 60)]
)
def test_a_download_waits_for_the_upload_for_a_limited_time(
    server: TestServer, alice: User, query: str, seconds: int
) -> None:
    _, pending = _waiting(alice, query)
    server.clock.advance(seconds - 0.1)
    assert not pending.done
    server.clock.advance(0.1)
    assert (pending.answer.status, pending.answer.errcode) == (504, "M_NOT_YET_UPLOADED")


def test_a_download_without_a_timeout_is_answered_at_once(server: TestServer, alice: User) -> None:
    pending = _waiting(alice, "?timeout_ms=0")[1]
    server.clock.advance(0)
    assert pending.answer.errcode == "M_NOT_YET_UPLOADED"
    assert alice.get(f"{DOWNLOAD}{_create(alice)}?timeout_ms=-1").errcode == "M_INVALID_PARAM"


def test_a_disconnected_waiting_download_is_removed(server: TestServer, alice: User) -> None:
    file, pending = _waiting(alice)
    pending.disconnect()
    assert not [
        call
        for call in server.clock.getDelayedCalls()
        if 0 < call.getTime() - server.clock.seconds() <= 20
    ]
    assert _send(alice, "PUT", f"{UPLOAD}/{file}", b"tea").status == 200


async def test_suspended_users_may_download_but_not_upload(server: TestServer, alice: User) -> None:
    file = _upload(alice, b"x")
    accounts = server.app.accounts.stores.accounts
    await server.app.database.write(
        "suspend", lambda txn: accounts.set_flags(txn, alice.user_id, suspended=True)
    )
    assert alice.get(DOWNLOAD + file).status == 200
    for answer in (_send(alice, "POST", UPLOAD, b"x"), alice.post(CREATE)):
        assert (answer.status, answer.errcode) == (403, "M_USER_SUSPENDED")
