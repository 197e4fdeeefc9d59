"""Signing in on a second client with a token that the first one asked for."""

import pytest

from federation.protocol.endpoint import Limit
from homeserver.http.rate_limits import Rate
from storage.database import Database
from tests.helpers.accounts import AccountsServer, User
from tests.helpers.http import Answer

GET_TOKEN = "/_matrix/client/v1/login/get_token"


@pytest.fixture
def server(database: Database) -> AccountsServer:
    return AccountsServer(database, login_tokens=True)


def token_of(user: User) -> str:
    answer = user.post(GET_TOKEN, {"auth": user.proof()})
    assert answer.status == 200, answer.body
    assert answer.json["expires_in_ms"] == 120_000
    return str(answer.json["login_token"])


def login(server: AccountsServer, token: str, **further: object) -> Answer:
    return server.request("POST", "login", {"type": "m.login.token", "token": token, **further})


def test_a_second_client_signs_in_once(server: AccountsServer) -> None:
    alice = server.register()
    assert server.request("GET", "login").json["flows"] == [
        {"type": "m.login.password"},
        {"type": "m.login.token", "get_login_token": True},
    ]
    assert alice.get("capabilities").json["capabilities"]["m.get_login_token"] == {"enabled": True}
    token = token_of(alice)

    second = login(server, token, device_id="SECOND", refresh_token=True)
    assert second.status == 200
    assert (second.json["user_id"], second.json["device_id"]) == (alice.id, "SECOND")
    assert "refresh_token" in second.json
    assert User(server, second.json, "").is_signed_in()
    again = login(server, token)
    assert (again.status, again.errcode) == (403, "M_FORBIDDEN")


def test_the_password_is_asked_for_each_time(server: AccountsServer) -> None:
    alice = server.register()
    token_of(alice)
    asked = alice.post(GET_TOKEN, {})
    assert asked.status == 401
    assert asked.json["flows"] == [{"stages": ["m.login.password"]}]


async def test_a_token_grows_old_and_is_swept(server: AccountsServer) -> None:
    alice = server.register()
    token = token_of(alice)
    server.clock.advance(121)
    assert login(server, token).status == 403

    token_of(alice)
    server.clock.advance(121)
    assert await server.login_tokens.do_sweep(10) == 1
    assert await server.login_tokens.do_sweep(10) == 0


@pytest.mark.parametrize("ending", ["logout/all", "password", "deactivate"])
def test_what_ends_all_sessions_ends_tokens(server: AccountsServer, ending: str) -> None:
    alice = server.register()
    token = token_of(alice)
    if ending == "logout/all":
        assert alice.post("logout/all", {}).status == 200
    elif ending == "password":
        assert alice.post("account/password", {"new_password": "glass", "auth": alice.proof()}).status == 200
    else:
        assert alice.post("account/deactivate", {"auth": alice.proof()}).status == 200
    assert login(server, token).status == 403


async def test_a_locked_account_does_not_sign_in(server: AccountsServer) -> None:
    alice = server.register()
    token = token_of(alice)
    await server.database.write("lock", server.account_store.set_flags, alice.id, locked=True)
    answer = login(server, token)
    assert (answer.status, answer.errcode) == (401, "M_USER_LOCKED")


async def test_a_lock_ends_tokens(server: AccountsServer) -> None:
    alice = server.register()
    token = token_of(alice)
    await server.accounts.do_set_flags(alice.id, locked=True)
    await server.accounts.do_set_flags(alice.id, locked=False)
    assert login(server, token).errcode == "M_FORBIDDEN"


def test_tokens_cannot_be_guessed_for_long(database: Database) -> None:
    server = AccountsServer(database, login_tokens=True, rates={Limit.LOGIN_FAILED: Rate(0.01, 3)})
    answers = [login(server, f"guess{number}").status for number in range(5)]
    assert answers == [403, 403, 403, 429, 429]


def test_bad_tokens_are_refused(server: AccountsServer) -> None:
    assert server.request("POST", "login", {"type": "m.login.token"}).errcode == "M_MISSING_PARAM"
    for token in ("", "\0", "x" * 60_000):
        assert login(server, token).status == 403
    assert login(server, 7).errcode == "M_BAD_JSON"  # type: ignore[arg-type]


def test_a_server_that_does_not_want_them_gives_none(database: Database) -> None:
    server = AccountsServer(database)
    alice = server.register()
    assert alice.post(GET_TOKEN, {"auth": alice.proof()}).errcode == "M_FORBIDDEN"
    assert alice.get("capabilities").json["capabilities"]["m.get_login_token"] == {"enabled": False}
    assert server.request("GET", "login").json["flows"] == [{"type": "m.login.password"}]
