"""Upload quotas of users and of the server."""

from pathlib import Path

import pytest

from storage.engine.database import Database
from tests.helpers.http import Answer
from tests.helpers.media_files import request_upload
from tests.helpers.server import TestServer, User

CONFIG = """
media_upload_limits: [{time_period: 1h, max_size: 1000}, {time_period: 7d, max_size: 1500}]
media_user_quota: 2000
max_upload_size_by_type: {"video/*": 300, "image/png": 200}
media_limits_info_uri: https://example.org/limits
"""
HOUR, WEEK = 3600, 7 * 24 * 3600


@pytest.fixture
def alice(tmp_path: Path, sqlite_database: Database) -> User:
    return TestServer(tmp_path, sqlite_database, CONFIG).register("alice")


def _upload(
    user: User, size: int, type: str = "text/plain", path: str = "upload", method: str = "POST"
) -> Answer:
    return request_upload(user, b"x" * size, type, f"/_matrix/media/v3/{path}", method)


def test_the_bytes_uploaded_within_a_time_are_limited(alice: User) -> None:
    assert _upload(alice, 900).status == 200
    refused = _upload(alice, 101)
    assert (refused.status, refused.errcode) == (403, "M_USER_LIMIT_EXCEEDED")
    assert refused.json["info_uri"] == "https://example.org/limits"
    assert refused.json["error"] == (
        "You may upload 1000 bytes in 1 hours, and have uploaded 900 bytes; this file has 101 bytes"
    )
    assert _upload(alice, 100).status == 200
    assert _upload(alice.server.register("bob"), 900).status == 200
    alice.server.clock.advance(HOUR)
    assert _upload(alice, 501).errcode == "M_USER_LIMIT_EXCEEDED"  # in the week
    assert _upload(alice, 500).status == 200


def test_deleting_files_frees_the_total_quota(alice: User) -> None:
    first = _upload(alice, 1000).json["content_uri"].rpartition("/")[2]
    alice.server.clock.advance(WEEK)
    assert _upload(alice, 900).status == 200
    alice.server.clock.advance(WEEK)
    assert "Delete files" in _upload(alice, 101).json["error"]
    assert alice.delete(f"/_mahalla/client/v1/media/{first}").status == 200
    assert _upload(alice, 101).status == 200


def test_uploads_to_reserved_uris_count_against_the_quota(alice: User) -> None:
    reserved = alice.post("/_matrix/media/v1/create").json["content_uri"].removeprefix("mxc://")
    assert (
        _upload(alice, 1001, path=f"upload/{reserved}", method="PUT").errcode
        == "M_USER_LIMIT_EXCEEDED"
    )
    assert _upload(alice, 1000, path=f"upload/{reserved}", method="PUT").status == 200


def test_uploads_to_uris_reserved_earlier_count_against_the_quota(alice: User) -> None:
    one, other = (
        alice.post("/_matrix/media/v1/create").json["content_uri"].removeprefix("mxc://")
        for _ in range(2)
    )
    alice.server.clock.advance(HOUR + 1)
    assert _upload(alice, 1000, path=f"upload/{one}", method="PUT").status == 200
    assert (
        _upload(alice, 1, path=f"upload/{other}", method="PUT").errcode == "M_USER_LIMIT_EXCEEDED"
    )
    alice.server.clock.advance(HOUR)
    assert _upload(alice, 1, path=f"upload/{other}", method="PUT").status == 200


@pytest.mark.parametrize(
    ("type", "size", "status"),
    [
        ("video/mp4", 301, 413),
        ("VIDEO/mp4; x=y", 301, 413),
        ("image/png", 201, 413),
        ("image/jpeg", 301, 200),
    ],
)
def test_the_largest_file_depends_on_its_type(
    alice: User, type: str, size: int, status: int
) -> None:
    answer = _upload(alice, size, type)
    assert answer.status == status
    assert status == 200 or answer.errcode == "M_TOO_LARGE"
