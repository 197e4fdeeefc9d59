"""Tokens of the OAuth 2.0 API: refresh, theft, revocation, and introspection."""

from base64 import b64encode
from pathlib import Path
from random import Random

import pytest

from federation.protocol.ids import UserID
from homeserver.services.tokens.secret_tokens import SecretGenerator, parse_oauth_family
from storage.accounts.accounts import AccountStore
from storage.accounts.validity import AccountValidityStore
from storage.engine.database import Database
from storage.login.access_tokens import RACE_MS
from tests.helpers.audit_records import audit_records
from tests.helpers.browser import Browser
from tests.helpers.http import Answer
from tests.helpers.logins import password_auth
from tests.helpers.oauth import CONFIG, METADATA, Program, assert_refused
from tests.helpers.server import TestServer, User

WHOAMI = "/_matrix/client/v3/account/whoami"
TRUSTING = CONFIG + "oauth: {introspection_clients: {calendar: sesame}}\n"


@pytest.fixture
def alice(program: Program, browser: Browser) -> User:
    return program.sign_in(browser)


def test_tokens_are_refreshed(program: Program, alice: User) -> None:
    first = program.tokens
    program.server.clock.advance(301)
    old = alice.get(WHOAMI)
    assert (old.status, old.json["soft_logout"]) == (401, True)
    answer = program.refresh()
    assert answer.json.keys() == first.keys()
    assert answer.json["scope"] == program.scope
    assert program.take(answer).device_id == alice.device_id
    for _ in range(3):
        program.take(program.refresh())


def test_a_lost_refresh_response_can_be_repeated(program: Program, browser: Browser) -> None:
    program.sign_in(browser)
    first = str(program.tokens["refresh_token"])
    lost = program.refresh(first)
    repeated = program.refresh(first)
    assert repeated.status == 200
    alice = program.take(repeated)
    assert alice.get(WHOAMI).status == 200
    program.server.clock.advance(61)
    # the lost tokens are invalid, but using them is not treated as theft
    assert_refused(program.refresh(lost.json["refresh_token"]))
    assert alice.get(WHOAMI).status == 200


def test_two_processes_of_a_client_refresh_at_once(program: Program, browser: Browser) -> None:
    program.sign_in(browser)
    first = str(program.tokens["refresh_token"])
    one, two = program.refresh(first), program.refresh(first)
    for answer in (one, two):
        assert program.take(answer).get(WHOAMI).status == 200
        assert program.take(program.refresh()).get(WHOAMI).status == 200


def test_a_reused_refresh_token_ends_the_session(program: Program, alice: User) -> None:
    stolen = str(program.tokens["refresh_token"])
    for _ in range(5):
        alice = program.take(program.refresh())
    program.server.clock.advance(RACE_MS / 1000)
    assert_refused(program.refresh(stolen))
    assert alice.get(WHOAMI).errcode == "M_UNKNOWN_TOKEN"
    assert_refused(program.refresh())
    assert len(_devices(program.server)) == 1  # the session of the registration


def test_a_late_refresh_of_another_process_is_only_refused(
    program: Program, browser: Browser
) -> None:
    program.sign_in(browser)
    first = str(program.tokens["refresh_token"])
    alice = program.take(program.refresh())  # the client uses the new token
    program.server.clock.advance(RACE_MS / 1000 - 1)
    assert_refused(program.refresh(first))
    assert alice.get(WHOAMI).status == 200
    assert "token_reused" not in [event for event, _ in audit_records(program.server)]
    program.server.clock.advance(1)
    assert_refused(program.refresh(first))
    assert alice.get(WHOAMI).errcode == "M_UNKNOWN_TOKEN"
    assert "token_reused" in [event for event, _ in audit_records(program.server)]


def test_a_refresh_by_a_thief_does_not_hide_the_reuse(program: Program, browser: Browser) -> None:
    program.sign_in(browser)
    owners = str(program.tokens["refresh_token"])
    thief = program.take(program.refresh())
    program.refresh()  # at once, and the new tokens are not used
    program.server.clock.advance(RACE_MS / 1000)
    assert_refused(program.refresh(owners))
    assert thief.get(WHOAMI).errcode == "M_UNKNOWN_TOKEN"


def test_an_invented_token_ends_no_session(program: Program, alice: User) -> None:
    real = str(program.tokens["refresh_token"])
    family = parse_oauth_family(real)
    assert family is not None
    for token in (
        "",
        "x",
        "mho_" + "a" * 54,
        real[:-1],
        real + "x",
        real.swapcase(),
        "mhr_" + real[4:],
        "\x00",
    ):
        assert program.refresh(token).status == 400
    assert parse_oauth_family(real[:-7] + "!" + real[-6:]) is None
    assert alice.get(WHOAMI).status == 200


def test_invented_codes_and_tokens_cost_no_write(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can send such requests at any rate."""
    text = SecretGenerator(Random(99).randbytes)
    legacy, ours, access = (
        text.refresh_token(text.family()),
        text.oauth_refresh_token(text.family()),
        text.access_token(),
    )
    monkeypatch.setattr(program.server.app.database, "write", None)
    assert_refused(program.refresh(ours))
    answer = program.server.post("/_matrix/client/v3/refresh", {"refresh_token": legacy})
    assert (answer.status, answer.errcode) == (401, "M_UNKNOWN_TOKEN")
    for token in (legacy, ours, access, "x"):
        assert program.form("revocation_endpoint", token=token).status == 200


def test_a_token_belongs_to_one_client(program: Program, alice: User) -> None:
    other = Program(program.server, {**METADATA, "client_name": "Other"})
    assert_refused(program.refresh(client_id=other.client_id))
    assert_refused(program.refresh(client_id="nobody"), "invalid_client", 401)
    assert alice.get(WHOAMI).status == 200
    assert program.refresh().status == 200


def test_both_refresh_apis_refuse_tokens_of_the_other(program: Program, browser: Browser) -> None:
    program.sign_in(browser)
    server = program.server
    token = str(program.tokens["refresh_token"])
    assert (
        server.post("/_matrix/client/v3/refresh", {"refresh_token": token}).errcode
        == "M_UNKNOWN_TOKEN"
    )
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
    older = server.post(
        "/_matrix/client/v3/login", {**body, "password": "wonderland", "refresh_token": True}
    ).json
    assert_refused(program.refresh(older["refresh_token"]))
    assert (
        server.post("/_matrix/client/v3/refresh", {"refresh_token": older["refresh_token"]}).status
        == 200
    )


def test_sessions_expire(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, CONFIG + "session_lifetime: 1h\n")
    server.register("alice")
    program = Program(server)
    program.sign_in(Browser(server))
    server.clock.advance(1800)
    program.take(program.refresh())
    server.clock.advance(1800)
    assert_refused(program.refresh())


def test_a_locked_account_keeps_its_sessions(program: Program, alice: User) -> None:
    accounts = program.server.app.user_data.accounts
    program.server.run(accounts.do_set_flags(alice.user_id, locked=True))
    program.server.clock.advance(301)
    answer = program.refresh()
    assert answer.status == 200
    program.tokens = answer.json
    locked = program.server.client.request("GET", WHOAMI, token=answer.json["access_token"])
    assert locked.errcode == "M_USER_LOCKED"
    program.server.run(accounts.do_set_flags(alice.user_id, locked=False))
    assert program.take(program.refresh()).user_id == alice.user_id


def test_a_new_sign_in_replaces_the_session_of_the_device(
    program: Program, browser: Browser
) -> None:
    first = program.sign_in(browser)
    old = str(program.tokens["refresh_token"])
    second = program.sign_in(browser)
    assert (first.get(WHOAMI).status, second.get(WHOAMI).status) == (401, 200)
    assert_refused(program.refresh(old))
    assert (
        second.get(WHOAMI).status == 200
    )  # the old session has ended; its token does not count as stolen from the new one
    # after a login with the older API the device has no OAuth session
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
    login = {**body, "password": "wonderland", "device_id": program.device_id}
    assert program.server.post("/_matrix/client/v3/login", login).status == 200
    assert_refused(program.refresh())


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
def test_revocation_ends_the_session(program: Program, alice: User, kind: str) -> None:
    token = str(program.tokens[kind])
    answer = program.form(
        "revocation_endpoint", token=token, token_type_hint=kind, client_id=program.client_id
    )
    assert answer.status == 200
    assert alice.get(WHOAMI).status == 401
    assert_refused(program.refresh())
    assert program.form("revocation_endpoint", token=token).status == 200  # repeating is no error
    assert "token_found" not in [event for event, _ in audit_records(program.server)]
    assert alice.device_id not in _devices(program.server)


def test_anybody_with_a_token_can_revoke_it(program: Program, alice: User) -> None:
    assert (
        program.form("revocation_endpoint", token=alice.token, client_id="a scanner").status == 200
    )
    assert alice.get(WHOAMI).status == 401
    assert [event for event, _ in audit_records(program.server)][-2:] == [
        "token_found",
        "session_ended",
    ]
    assert_refused(program.form("revocation_endpoint"), "invalid_request")
    assert program.form("revocation_endpoint", token="mha_unknown").status == 200


def test_an_account_that_expires_before_the_exchange_is_refused(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(
        tmp_path, sqlite_database, CONFIG + "account_validity: {enabled: true, period: 100d}\n"
    )
    alice = server.register("alice")
    program = Program(server)
    code = program.code(Browser(server))
    store = AccountValidityStore(database=sqlite_database, accounts=AccountStore(sqlite_database))
    over = int(server.clock.seconds() * 1000) - 1
    server.run(sqlite_database.write("end", store.set_expiry, alice.user_id, over))
    assert_refused(program.exchange(code))
    assert audit_records(server)[-1] == ("sign_in_refused", "expired")


def test_a_password_change_ends_codes(program: Program, browser: Browser) -> None:
    code = program.code(browser)
    people = program.server.app.user_data
    program.server.run(
        people.accounts.do_set_password(UserID("@alice:example.org"), "a new password")
    )
    assert_refused(program.exchange(code))
    assert program.sign_in(browser).get(WHOAMI).status == 200  # the sessions continue


def test_a_session_ends_by_logout_and_device_deletion(program: Program, browser: Browser) -> None:
    alice = program.sign_in(browser)
    assert alice.post("/_matrix/client/v3/logout").status == 200
    assert_refused(program.refresh())
    alice = program.sign_in(browser)
    assert alice.post("/_matrix/client/v3/logout/all").status == 200
    assert_refused(program.refresh())


def test_oauth_sessions_cannot_use_password_confirmation(alice: User) -> None:
    proof = password_auth("alice")
    for path, body in (
        ("account/password", {"new_password": "x"}),
        ("account/deactivate", {}),
        ("delete_devices", {"devices": [alice.device_id]}),
    ):
        answer = alice.post(f"/_matrix/client/v3/{path}", {**body, "auth": proof})
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN"), path
        assert "/_mahalla/account" in answer.json["error"]


@pytest.fixture
def trusting(tmp_path: Path, sqlite_database: Database) -> Program:
    server = TestServer(tmp_path, sqlite_database, TRUSTING)
    server.register("alice")
    return Program(server)


def test_trusted_services_introspect_tokens(trusting: Program) -> None:
    alice = trusting.sign_in(Browser(trusting.server))

    def ask(token: str) -> Answer:
        return trusting.form(
            "introspection_endpoint", token=token, client_id="calendar", client_secret="sesame"
        )

    found = ask(alice.token).json
    assert found == {
        "active": True,
        "iss": "https://matrix.example.org/",
        "sub": "@alice:example.org",
        "username": "alice",
        "scope": trusting.scope,
        "device_id": "ELEMENTX01",
        "client_id": trusting.client_id,
        "token_type": "Bearer",
        "exp": int(trusting.server.clock.seconds()) + 300,
    }
    refreshing = ask(str(trusting.tokens["refresh_token"])).json
    assert (refreshing["active"], "token_type" in refreshing) == (True, False)
    older = trusting.server.register("bob")
    assert (
        ask(older.token).json["scope"]
        == f"urn:matrix:client:api:* urn:matrix:client:device:{older.device_id}"
    )
    for token in ("unknown", "mha_x", "\udcff"):
        assert ask(token).json == {"active": False} if token.isascii() else True
    database, accounts = trusting.server.app.database, AccountStore(trusting.server.app.database)
    trusting.server.run(database.write("lock", accounts.set_flags, older.user_id, locked=True))
    assert ask(older.token).json == {"active": False}
    trusting.server.clock.advance(301)
    assert ask(alice.token).json == {"active": False}


def test_a_superseded_token_pair_is_inactive(trusting: Program) -> None:
    trusting.sign_in(Browser(trusting.server))
    first = str(trusting.tokens["refresh_token"])
    put_by = trusting.refresh(first).json
    trusting.server.clock.advance(RACE_MS / 1000 + 1)
    trusting.take(trusting.refresh(first))

    def is_active(token: object) -> bool:
        form = {"token": str(token), "client_id": "calendar", "client_secret": "sesame"}
        return bool(trusting.form("introspection_endpoint", **form).json["active"])

    for name in ("access_token", "refresh_token"):
        assert is_active(trusting.tokens[name])
        assert not is_active(put_by[name])
    assert not is_active(first)


@pytest.mark.parametrize("confirmed", [True, False])
def test_capabilities_of_an_oauth_session_exclude_password_changes(
    tmp_path: Path, sqlite_database: Database, confirmed: bool
) -> None:
    confirm = str(confirmed).lower()
    tokens = f"login_via_existing_session: {{enabled: true, require_ui_auth: {confirm}}}\n"
    server = TestServer(tmp_path, sqlite_database, CONFIG + tokens)
    older = server.register("alice")
    app = Program(server).sign_in(Browser(server))
    names = ("m.change_password", "m.3pid_changes", "m.get_login_token", "m.set_displayname")

    def enabled_capabilities(user: User) -> dict[str, bool]:
        capabilities = user.get("/_matrix/client/v3/capabilities").json["capabilities"]
        return {name: capabilities[name]["enabled"] for name in names}

    assert enabled_capabilities(app) == dict(
        zip(names, (False, False, not confirmed, True), strict=True)
    )
    assert enabled_capabilities(older)["m.change_password"]
    assert enabled_capabilities(older)["m.get_login_token"]
    assert (app.post("/_matrix/client/v1/login/get_token", {}).status == 200) is not confirmed
    assert (
        app.post("/_matrix/client/v3/account/password", {"new_password": "another password"}).status
        == 403
    )


def test_guessing_a_service_secret_is_rate_limited(
    tmp_path: Path, sqlite_database: Database
) -> None:
    limited = "rc_login: {failed_attempts: {per_second: 0.01, burst_count: 3}}\n"
    server = TestServer(tmp_path, sqlite_database, TRUSTING + limited)
    server.register("alice")
    program = Program(server)

    def ask(secret: str) -> int:
        return program.form(
            "introspection_endpoint", token="x", client_id="calendar", client_secret=secret
        ).status

    assert [ask("sesame") for _ in range(6)] == [200] * 6  # correct secrets are not limited
    assert [ask(f"guess {number}") for number in range(5)] == [401, 401, 401, 429, 429]
    assert ask("sesame") == 429
    assert (
        program.sign_in(Browser(server)).user_id == "@alice:example.org"
    )  # logins of users are not affected
    server.clock.advance(101)
    assert ask("sesame") == 200


def test_untrusted_services_are_refused(trusting: Program) -> None:
    path = trusting.path_of("introspection_endpoint")
    for name, secret in (("calendar", "wrong"), ("other", "sesame"), ("", "")):
        answer = trusting.form(
            "introspection_endpoint", token="x", client_id=name, client_secret=secret
        )
        assert_refused(answer, "invalid_client", 401)
    for header, status in (
        (_basic("calendar:sesame"), 200),
        (_basic("calendar:x"), 401),
        ("Basic !", 401),
    ):
        answer = trusting.server.client.request(
            "POST", path, body=b"token=x", headers={"Authorization": header}
        )
        assert answer.status == status


def test_a_refused_service_learns_the_authentication_scheme(program: Program) -> None:
    """spec: RFC 6749 section 5.2"""
    headers = {"Authorization": _basic("calendar:wrong")}
    path = program.path_of("introspection_endpoint")
    answer = program.server.client.request("POST", path, body=b"token=x", headers=headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Basic realm=")
    # a client without a secret must not make its browser ask for one
    assert "www-authenticate" not in program.refresh("x", client_id="nobody").headers


def _basic(text: str) -> str:
    return "Basic " + b64encode(text.encode()).decode()


def _devices(server: TestServer) -> list[str]:
    rows = server.run(server.app.accounts.stores.devices.get_devices(["@alice:example.org"]))
    return [row.device_id for row in rows["@alice:example.org"]]
