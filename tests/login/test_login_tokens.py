"""Login tokens: a first client requests a token, a second client signs in with it."""

import pytest

from federation.peers.token_buckets import Rate
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.login.application_passwords import ApplicationPasswords
from storage.engine.database import Database
from tests.helpers.accounts import AccountsServer, User
from tests.helpers.http import Answer

GET_TOKEN = "/_matrix/client/v1/login/get_token"


@pytest.fixture
def server(database: Database) -> AccountsServer:
    return AccountsServer(database, login_tokens=True)


def request_token(user: User) -> str:
    answer = user.post(GET_TOKEN, {"auth": user.password_auth()})
    assert answer.status == 200, answer.body
    assert answer.json["expires_in_ms"] == 120_000
    return str(answer.json["login_token"])


def login(server: AccountsServer, token: str, **further: object) -> Answer:
    return server.request("POST", "login", {"type": "m.login.token", "token": token, **further})


def test_a_second_client_signs_in_once_with_a_token(server: AccountsServer) -> None:
    alice = server.register()
    assert server.request("GET", "login").json["flows"] == [
        {"type": "m.login.password"},
        {"type": "m.login.token", "get_login_token": True},
    ]
    assert alice.get("capabilities").json["capabilities"]["m.get_login_token"] == {"enabled": True}
    token = request_token(alice)

    second = login(server, token, device_id="SECOND", refresh_token=True)
    assert second.status == 200
    assert (second.json["user_id"], second.json["device_id"]) == (alice.id, "SECOND")
    assert "refresh_token" in second.json
    assert User(server, second.json, "").is_signed_in()
    second_use = login(server, token)
    assert (second_use.status, second_use.errcode) == (403, "M_FORBIDDEN")


def test_each_token_needs_a_confirmation(server: AccountsServer) -> None:
    alice = server.register()
    request_token(alice)
    challenge = alice.post(GET_TOKEN, {})
    assert challenge.status == 401
    assert challenge.json["flows"] == [{"stages": ["m.login.password"]}]


async def test_expired_tokens_are_refused_and_removed(server: AccountsServer) -> None:
    alice = server.register()
    token = request_token(alice)
    server.clock.advance(121)
    assert login(server, token).status == 403

    request_token(alice)
    server.clock.advance(121)
    assert await server.login_tokens.do_sweep(10) == 1
    assert await server.login_tokens.do_sweep(10) == 0


@pytest.mark.parametrize("ending", ["logout/all", "password", "deactivate"])
def test_the_end_of_all_sessions_revokes_tokens(server: AccountsServer, ending: str) -> None:
    alice = server.register()
    token = request_token(alice)
    if ending == "logout/all":
        assert alice.post("logout/all", {}).status == 200
    elif ending == "password":
        assert (
            alice.post(
                "account/password", {"new_password": "glass", "auth": alice.password_auth()}
            ).status
            == 200
        )
    else:
        assert alice.post("account/deactivate", {"auth": alice.password_auth()}).status == 200
    assert login(server, token).status == 403


@pytest.mark.parametrize("confirmed", [True, False])
@pytest.mark.parametrize("log_out", [True, False])
def test_a_new_password_revokes_earlier_tokens(
    database: Database, confirmed: bool, log_out: bool
) -> None:
    server = AccountsServer(database, login_tokens=True, login_tokens_confirmed=confirmed)
    alice = server.register()
    token = request_token(alice)
    change = {"new_password": "glass", "logout_devices": log_out, "auth": alice.password_auth()}
    assert alice.post("account/password", change).status == 200
    answer = login(server, token)
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")
    alice.password = "glass"
    assert login(server, request_token(alice)).status == 200


@pytest.mark.parametrize("ending", ["password", "logout", "lock", "deactivate"])
def test_no_token_is_issued_while_the_session_ends(
    database: Database, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    server = AccountsServer(database, login_tokens=True, login_tokens_confirmed=False)
    alice = server.register()
    is_program = type(server.application_passwords).is_application_session

    async def end_session_first(self: ApplicationPasswords, caller: Requester) -> bool:
        monkeypatch.undo()
        if ending == "password":
            await server.accounts.do_set_password(alice.id, "glass", log_out_all=True)
        elif ending == "logout":
            await server.sessions.do_log_out(caller)
        elif ending == "lock":
            await server.accounts.do_set_flags(alice.id, locked=True)
        else:
            await server.deactivation.do_deactivate(alice.id, erase=False)
        return await is_program(self, caller)

    monkeypatch.setattr(ApplicationPasswords, "is_application_session", end_session_first)
    answer = alice.post(GET_TOKEN, {})
    assert (answer.status, "login_token" in answer.json) == (401, False)


async def test_a_locked_account_cannot_sign_in_with_a_token(server: AccountsServer) -> None:
    alice = server.register()
    token = request_token(alice)
    await server.database.write("lock", server.account_store.set_flags, alice.id, locked=True)
    answer = login(server, token)
    assert (answer.status, answer.errcode) == (401, "M_USER_LOCKED")


async def test_a_lock_revokes_tokens(server: AccountsServer) -> None:
    alice = server.register()
    token = request_token(alice)
    await server.accounts.do_set_flags(alice.id, locked=True)
    await server.accounts.do_set_flags(alice.id, locked=False)
    assert login(server, token).errcode == "M_FORBIDDEN"


def test_guesses_of_tokens_are_rate_limited(database: Database) -> None:
    server = AccountsServer(database, login_tokens=True, rates={Limit.LOGIN_FAILED: Rate(0.01, 3)})
    answers = [login(server, f"guess{number}").status for number in range(5)]
    assert answers == [403, 403, 403, 429, 429]


def test_malformed_tokens_are_refused(server: AccountsServer) -> None:
    assert server.request("POST", "login", {"type": "m.login.token"}).errcode == "M_MISSING_PARAM"
    for token in ("", "\0", "x" * 60_000):
        assert login(server, token).status == 403
    assert login(server, 7).errcode == "M_BAD_JSON"  # type: ignore[arg-type]


def test_tokens_can_be_disabled(database: Database) -> None:
    server = AccountsServer(database)
    alice = server.register()
    assert alice.post(GET_TOKEN, {"auth": alice.password_auth()}).errcode == "M_FORBIDDEN"
    assert alice.get("capabilities").json["capabilities"]["m.get_login_token"] == {"enabled": False}
    assert server.request("GET", "login").json["flows"] == [{"type": "m.login.password"}]
