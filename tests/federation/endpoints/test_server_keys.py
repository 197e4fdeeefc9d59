"""The server's own keys, as others fetch them."""

from pathlib import Path

import pytest

from federation.protocol.ids import KeyID
from federation.protocol.signing import decode_base64, is_signed_by
from storage.engine.database import Database
from tests.helpers.server import TestServer

OLD = (
    'old_signing_keys: {"ed25519:old": {key: "Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw",'
    " expired_ts: 1576767829750}}\n"
)


@pytest.mark.parametrize("path", ["", "/ed25519:a_test", "/"])
def test_keys_are_signed_by_the_key_that_they_name(
    tmp_path: Path, sqlite_database: Database, path: str
) -> None:
    server = TestServer(tmp_path, sqlite_database, OLD)
    answer = server.get(f"/_matrix/key/v2/server{path}")
    assert answer.status == 200, answer.body
    document = answer.json
    assert document["server_name"] == "example.org"
    assert document["old_verify_keys"]["ed25519:old"]["expired_ts"] == 1576767829750
    ((key_id, key),) = document["verify_keys"].items()
    assert is_signed_by(document, "example.org", {KeyID(key_id): decode_base64(key["key"])})
    assert document["valid_until_ts"] > server.clock.seconds() * 1000 + 3600_000


def test_the_document_never_expires_within_the_hour(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    for _ in range(60):
        server.clock.advance(3600)
        valid_until = server.get("/_matrix/key/v2/server").json["valid_until_ts"]
        assert valid_until > server.clock.seconds() * 1000 + 3600_000


def test_only_a_federation_listener_serves_the_keys(
    tmp_path: Path, sqlite_database: Database
) -> None:
    listeners = "listeners: [{port: 8008, resources: [{names: [client]}]}]\n"
    server = TestServer(tmp_path, sqlite_database, listeners)
    assert server.get("/_matrix/key/v2/server").json["errcode"] == "M_UNRECOGNIZED"


def test_the_validity_of_the_key_document_is_configured(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, "key_refresh_interval: 2h\n")
    now = int(server.clock.seconds() * 1000)
    first = server.get("/_matrix/key/v2/server").json
    assert first["valid_until_ts"] == now + 2 * 3600_000
    server.clock.advance(3599)
    assert server.get("/_matrix/key/v2/server").json == first
    server.clock.advance(1)
    assert server.get("/_matrix/key/v2/server").json["valid_until_ts"] == now + 3 * 3600_000
