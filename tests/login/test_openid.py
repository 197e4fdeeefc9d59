"""OpenID tokens. spec: client-server-api#openid"""

from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from storage.engine.database import Database
from tests.helpers.http import Answer, Client, RememberingAccessLog
from tests.helpers.logins import password_auth
from tests.helpers.room_actions import V3, ok, refused
from tests.helpers.server import TestServer, User

USERINFO = "/_matrix/federation/v1/openid/userinfo"
OPENID_LISTENER = "listeners: [{type: http, port: 8008, resources: [{names: [client, openid]}]}]\n"
FEDERATION_LISTENER = (
    "listeners: [{type: http, port: 8008, resources: [{names: [client, federation]}]}]\n"
)
CLIENT_LISTENER = "listeners: [{type: http, port: 8008, resources: [{names: [client]}]}]\n"
UNKNOWN = (401, "M_UNKNOWN_TOKEN")


def request_token(user: User) -> str:
    answer = ok(user.post(f"{V3}/user/{user.user_id}/openid/request_token", {}))
    token = answer.pop("access_token")
    assert answer == {
        "token_type": "Bearer",
        "matrix_server_name": "example.org",
        "expires_in": 3600,
    }
    return str(token)


def user_info(server: TestServer, token: str | None) -> Answer:
    return server.get(USERINFO if token is None else f"{USERINFO}?access_token={token}")


@pytest.mark.parametrize("listener", [OPENID_LISTENER, FEDERATION_LISTENER])
def test_a_token_proves_the_identity_for_an_hour(
    tmp_path: Path, database: Database, listener: str
) -> None:
    server = TestServer(tmp_path, database, listener)
    alice, bob = server.register("alice"), server.register("bob")
    token, other = request_token(alice), request_token(alice)
    assert token != other
    for _ in range(2):
        assert ok(user_info(server, token)) == {"sub": alice.user_id}
    assert ok(user_info(server, request_token(bob))) == {"sub": bob.user_id}
    assert (
        refused(server.get(f"{V3}/account/whoami", token=token)) == UNKNOWN
    )  # it is no access token
    server.clock.advance(3599)
    ok(user_info(server, token))
    server.clock.advance(1)
    assert refused(user_info(server, token)) == UNKNOWN
    late = request_token(alice)
    Deferred.fromCoroutine(server.app.calls.openid.do_delete_expired(50))
    ok(user_info(server, late))


def test_unknown_tokens_and_closed_accounts_are_refused(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, OPENID_LISTENER)
    alice, bob = server.register("alice"), server.register("bob")
    for token in (None, "", "x", "a" * 3000, alice.token):
        assert refused(user_info(server, token)) == UNKNOWN
    assert refused(alice.post(f"{V3}/user/{bob.user_id}/openid/request_token", {})) == (
        403,
        "M_FORBIDDEN",
    )
    token = request_token(alice)
    auth = password_auth("alice")
    ok(alice.post(f"{V3}/account/deactivate", {"auth": auth}))
    assert refused(user_info(server, token)) == UNKNOWN


def test_the_number_of_tokens_of_a_user_is_bounded(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, OPENID_LISTENER)
    alice = server.register("alice")
    first = request_token(alice)
    for _ in range(100):
        server.clock.advance(0.1)
        last = request_token(alice)
    assert refused(user_info(server, first)) == UNKNOWN
    ok(user_info(server, last))


def test_a_listener_without_the_resource_does_not_serve_it(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, CLIENT_LISTENER)
    site = server.app.sites.make(server.config.network.listeners[0])
    client = Client(site, clock=server.clock, access_log=RememberingAccessLog())
    assert refused(client.request("GET", USERINFO)) == (404, "M_UNRECOGNIZED")
