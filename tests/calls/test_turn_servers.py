"""TURN servers for calls. spec: client-server-api#voice-over-ip"""

import hmac
from base64 import b64encode
from hashlib import sha1
from pathlib import Path

import pytest

from storage.engine.database import Database
from tests.helpers.room_actions import V3, ok, refused
from tests.helpers.server import TestServer, User


def test_turn_credentials_are_made_from_a_shared_secret(
    tmp_path: Path, sqlite_database: Database
) -> None:
    config = (
        'turn_uris: ["turn:turn.example.org"]\nturn_shared_secret: n0rth\nturn_user_lifetime: 2h\n'
    )
    server = TestServer(tmp_path, sqlite_database, config)
    alice = server.register("alice")
    answer = ok(alice.get(f"{V3}/voip/turnServer"))
    username = f"{int(server.clock.seconds()) + 7200}:@alice:example.org"
    password = b64encode(hmac.new(b"n0rth", username.encode(), sha1).digest()).decode()
    assert answer == {
        "username": username,
        "password": password,
        "ttl": 7200,
        "uris": ["turn:turn.example.org"],
    }
    guest = User(server, ok(server.post(f"{V3}/register?kind=guest", {})))
    assert refused(guest.get(f"{V3}/voip/turnServer")) == (403, "M_GUEST_ACCESS_FORBIDDEN")
    assert refused(server.get(f"{V3}/voip/turnServer")) == (401, "M_MISSING_TOKEN")


def test_turn_credentials_can_be_static(tmp_path: Path, sqlite_database: Database) -> None:
    config = (
        'turn_uris: ["turn:t.example"]\nturn_username: u\nturn_password:'
        " p\nturn_allow_guests:"
        " true\n"
    )
    server = TestServer(tmp_path, sqlite_database, config)
    guest = User(server, ok(server.post(f"{V3}/register?kind=guest", {})))
    for user in (server.register("alice"), guest):
        answer = ok(user.get(f"{V3}/voip/turnServer"))
        assert answer == {"username": "u", "password": "p", "ttl": 3600, "uris": ["turn:t.example"]}


@pytest.mark.parametrize(
    "config", ["", 'turn_uris: ["turn:t.example"]\n', "turn_shared_secret: x\n"]
)
def test_without_a_turn_server_the_response_is_empty(
    tmp_path: Path, sqlite_database: Database, config: str
) -> None:
    alice = TestServer(tmp_path, sqlite_database, config).register("alice")
    assert ok(alice.get(f"{V3}/voip/turnServer")) == {}
