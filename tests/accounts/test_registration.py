"""Registration: UIA stages, user names, guests, registration tokens, shared secret."""

from typing import Any
from urllib.parse import quote

import pytest

from federation.peers.token_buckets import Rate
from federation.protocol.ids import UserID
from homeserver.api.limits import Limit
from homeserver.services.accounts.registration import RegistrationRequest
from homeserver.services.accounts.registration_rules import RegistrationRules
from homeserver.services.accounts.shared_secret_registration import compute_mac
from homeserver.services.login.passwords import PasswordPolicy
from homeserver.services.login.uia import (
    AuthData,
    AuthenticationRequired,
    Confirmation,
    UIAOperation,
    UIASessionUsed,
)
from homeserver.services.login.uia_stages import RegistrationTokenStage
from storage.accounts.accounts import AccountRow, AccountStore
from storage.accounts.registration_tokens import RegistrationTokenRow
from storage.engine.database import Database
from tests.helpers.accounts import OPEN, SHARED_SECRET, AccountsServer, User
from tests.helpers.http import Answer
from tests.helpers.logins import password_auth

DUMMY = {"type": "m.login.dummy"}
WITH_TOKEN = RegistrationRules(enabled=True, requires_token=True)
TOKEN_STAGE = "m.login.registration_token"


@pytest.fixture
def server(database: Database) -> AccountsServer:
    return AccountsServer(database)


def test_registration_needs_a_stage_and_signs_in(server: AccountsServer) -> None:
    body = {
        "username": "Alice",
        "password": "wonderland",
        "device_id": "PHONE",
        "initial_device_display_name": "Phone",
    }
    challenge = server.request("POST", "register", body)
    assert challenge.status == 401
    assert challenge.json["flows"] == [{"stages": ["m.login.dummy"]}]
    assert "errcode" not in challenge.json
    assert challenge.json["params"] == {}

    done = server.request(
        "POST", "register", {**body, "auth": {**DUMMY, "session": challenge.json["session"]}}
    )
    assert done.status == 200
    assert done.json["user_id"] == "@alice:example.org"
    assert done.json["device_id"] == "PHONE"
    assert done.json["home_server"] == "example.org"
    assert "refresh_token" not in done.json
    whoami = User(server, done.json, "wonderland").get("account/whoami").json
    assert whoami == {"user_id": "@alice:example.org", "device_id": "PHONE", "is_guest": False}


def test_only_created_accounts_count_against_the_rate_limit(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.REGISTRATION: Rate(0.01, 3)})
    for name in ("alice", "bob"):
        assert server.request("POST", "register", {}).status == 401
        for typed_name in (name[:2], name):
            assert server.request("GET", f"register/available?username={typed_name}").status == 200
        session = server.request("POST", "register", {"username": name}).json["session"]
        body = {"username": name, "password": "wonderland", "auth": {**DUMMY, "session": session}}
        assert server.request("POST", "register", body).status == 200
    body = {"username": "carol", "auth": DUMMY}
    statuses = [
        server.request("POST", "register", {**body, "username": f"carol{n}"}).status
        for n in range(3)
    ]
    assert statuses == [200, 429, 429]
    server.clock.advance(101)
    assert server.request("POST", "register", body).status == 200


def test_the_dummy_stage_needs_no_session(server: AccountsServer) -> None:
    assert server.request("POST", "register", {"auth": DUMMY, "username": "bob"}).status == 200


def test_a_repeated_request_gets_the_same_account(server: AccountsServer) -> None:
    session = server.request("POST", "register", {}).json["session"]
    body = {"password": "wonderland", "auth": {**DUMMY, "session": session}}
    first, repeated = (server.request("POST", "register", body) for _ in range(2))
    assert first.status == repeated.status == 200
    assert first.json["user_id"] == repeated.json["user_id"]

    named = {"username": "carol", "password": "wonderland"}
    session = server.request("POST", "register", named).json["session"]
    named["auth"] = {**DUMMY, "session": session}  # type: ignore[assignment]
    assert server.request("POST", "register", named).status == 200
    assert server.request("POST", "register", named).json["user_id"] == "@carol:example.org"
    # The session without the password is not enough.
    stranger = server.request("POST", "register", {**named, "password": "guess"})
    assert (stranger.status, stranger.errcode) == (403, "M_FORBIDDEN")
    other_name = server.request("POST", "register", {**named, "username": "dave"})
    assert other_name.status == 403


async def test_a_repeat_for_a_locked_account_is_refused(server: AccountsServer) -> None:
    session = server.request("POST", "register", {}).json["session"]
    body = {"username": "bob", "password": "wonderland", "auth": {**DUMMY, "session": session}}
    assert server.request("POST", "register", body).status == 200
    await server.accounts.do_set_flags(UserID("@bob:example.org"), locked=True)
    answer = server.request("POST", "register", body)
    assert (answer.status, answer.errcode) == (401, "M_USER_LOCKED")


def test_a_uia_session_of_another_operation_does_not_register(server: AccountsServer) -> None:
    alice = server.register()
    session = alice.post("account/deactivate", {}).json["session"]
    body = {"username": "bob", "auth": {"session": session}}
    assert server.request("POST", "register", body).status == 401


@pytest.mark.parametrize("name", ["has space", "ünï", "a!b", "a" * 250, "_bridged", ""])
def test_invalid_user_names_are_refused(server: AccountsServer, name: str) -> None:
    answer = server.request("POST", "register", {"username": name, "password": "x"})
    assert (answer.status, answer.errcode) == (400, "M_INVALID_USERNAME")
    available = server.request(
        "GET",
        f"register/available?username={quote(name)}",
    )
    assert available.errcode == "M_INVALID_USERNAME"


def test_taken_names_are_refused_before_the_stages(server: AccountsServer) -> None:
    server.register("alice")
    taken = server.request("POST", "register", {"username": "ALICE", "password": "x"})
    assert (taken.status, taken.errcode) == (400, "M_USER_IN_USE")
    assert server.request("GET", "register/available?username=alice").errcode == "M_USER_IN_USE"
    assert server.request("GET", "register/available?username=bob").json == {"available": True}


def test_a_name_taken_during_the_stages_is_refused(server: AccountsServer) -> None:
    session = server.request("POST", "register", {"username": "alice", "password": "x"}).json[
        "session"
    ]
    server.register("alice")
    answer = server.request(
        "POST",
        "register",
        {"username": "alice", "password": "x", "auth": {**DUMMY, "session": session}},
    )
    assert answer.errcode == "M_USER_IN_USE"


def test_inhibit_login_begins_no_session(server: AccountsServer) -> None:
    answer = server.request(
        "POST", "register", {"auth": DUMMY, "username": "alice", "inhibit_login": True}
    )
    assert answer.json == {"user_id": "@alice:example.org", "home_server": "example.org"}


def test_user_names_are_generated_where_none_is_given(server: AccountsServer) -> None:
    names = {server.request("POST", "register", {"auth": DUMMY}).json["user_id"] for _ in range(3)}
    assert len(names) == 3


def test_a_guest_is_upgraded_to_a_full_account(database: Database) -> None:
    rules = RegistrationRules(enabled=True, without_verification=True, guests=True)
    server = AccountsServer(database, rules=rules)
    guest, other = (
        User(server, server.request("POST", "register?kind=guest", {}).json, "") for _ in range(2)
    )
    assert guest.put(f"profile/{guest.id}/displayname", {"displayname": "Visitor"}).status == 200
    name = guest.id[1:].partition(":")[0]
    body: dict[str, Any] = {
        "username": name,
        "password": "wonderland",
        "guest_access_token": guest.token,
    }
    for wrong in (
        {"guest_access_token": other.token},
        {"guest_access_token": "unknown"},
        {"username": "bob"},
        {"username": None},
    ):
        refused = server.request("POST", "register", {**body, **wrong, "auth": DUMMY})
        assert (refused.status, refused.errcode) == (403, "M_FORBIDDEN"), wrong
    session = server.request("POST", "register", body).json["session"]
    body["auth"] = {**DUMMY, "session": session}
    created, repeated = (server.request("POST", "register", body) for _ in range(2))
    assert created.status == repeated.status == 200, created.body
    assert created.json["user_id"] == repeated.json["user_id"] == guest.id
    assert (
        guest.get("account/whoami").json["is_guest"] is False
    )  # the earlier session is still valid
    assert guest.get(f"profile/{guest.id}/displayname").json == {"displayname": "Visitor"}
    login = password_auth(name)
    assert server.request("POST", "login", login).status == 200
    taken = server.request("POST", "register", {**body, "auth": DUMMY})
    assert (taken.status, taken.errcode) == (400, "M_USER_IN_USE")
    assert other.get("account/whoami").json["is_guest"] is True


async def test_a_locked_guest_is_not_upgraded(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database)
    guest = User(server, server.request("POST", "register?kind=guest", {}).json, "")
    await server.accounts.do_set_flags(UserID(guest.id), locked=True)
    body = {
        "username": guest.id[1:].partition(":")[0],
        "password": "wonderland",
        "guest_access_token": guest.token,
    }
    refused = server.request("POST", "register", {**body, "auth": DUMMY})
    assert (refused.status, refused.errcode) == (401, "M_USER_LOCKED")


async def test_a_suspended_guest_is_not_upgraded(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database)
    guest = User(server, server.request("POST", "register?kind=guest", {}).json, "")
    body: dict[str, Any] = {
        "username": guest.id[1:].partition(":")[0],
        "password": "wonderland",
        "guest_access_token": guest.token,
    }
    session = server.request("POST", "register", body).json["session"]
    body["auth"] = {**DUMMY, "session": session}
    await server.accounts.do_set_flags(UserID(guest.id), suspended=True)
    for _ in range(2):
        refused = server.request("POST", "register", body)
        assert (refused.status, refused.errcode) == (403, "M_USER_SUSPENDED")
    assert guest.get("account/whoami").json["is_guest"] is True
    await server.accounts.do_set_flags(UserID(guest.id), suspended=False)
    assert server.request("POST", "register", body).json["user_id"] == guest.id


async def test_a_guest_suspended_during_the_upgrade_stays_a_guest(database: Database) -> None:
    """The write checks it too."""
    store = AccountStore(database)
    await database.write(
        "t", store.add_account, AccountRow("@1:example.org", None, 1, is_guest=True, suspended=True)
    )
    assert (
        await database.write("t", store.upgrade_guest, AccountRow("@1:example.org", "hash", 2))
        is False
    )


def test_a_guest_has_a_generated_name_and_limited_rights(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database)
    answer = server.request("POST", "register?kind=guest", {"username": "alice", "device_id": "X"})
    assert answer.status == 200
    assert answer.json["user_id"] != "@alice:example.org"
    assert answer.json["device_id"] != "X"
    guest = User(server, answer.json, "")
    assert guest.get("account/whoami").json["is_guest"] is True
    assert (
        guest.post("account/password", {"new_password": "x"}).errcode == "M_GUEST_ACCESS_FORBIDDEN"
    )
    assert server.request("POST", "register?kind=robot", {}).status == 400


@pytest.mark.parametrize(
    "rules",
    [
        RegistrationRules(),
        RegistrationRules(without_verification=True),
        RegistrationRules(enabled=True),
    ],
)
def test_closed_registration_refuses_requests(
    sqlite_database: Database, rules: RegistrationRules
) -> None:
    server = AccountsServer(sqlite_database, rules=rules)
    for answer in (
        server.request("POST", "register", {"auth": DUMMY, "username": "alice"}),
        server.request("POST", "register?kind=guest", {}),
        server.request("GET", "register/available?username=alice"),
        server.request("GET", f"/_matrix/client/v1/register/{TOKEN_STAGE}/validity?token=x"),
    ):
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")


def test_names_of_application_services_are_refused(sqlite_database: Database) -> None:
    class Bridged:
        def is_reserved(self, user_id: UserID) -> bool:
            return user_id.startswith("@irc")

    server = AccountsServer(sqlite_database, reserved=Bridged())
    assert (
        server.request("POST", "register", {"username": "irc-bob", "password": "x"}).errcode
        == "M_EXCLUSIVE"
    )


def test_weak_passwords_are_refused(sqlite_database: Database) -> None:
    policy = PasswordPolicy(
        minimum_length=8,
        require_digit=True,
        require_symbol=True,
        require_lowercase=True,
        require_uppercase=True,
    )
    server = AccountsServer(sqlite_database, policy=policy)
    for weak in ("sH0rt!", "nodigits!A", "n0symbolsA", "NO-LOWER-1", "no-upper-1"):
        answer = server.request("POST", "register", {"username": "alice", "password": weak})
        assert (answer.status, answer.errcode) == (400, "M_WEAK_PASSWORD"), weak
    assert (
        server.request("POST", "register", {"username": "alice", "password": "G00d-enough"}).status
        == 401
    )
    assert server.request("POST", "register", {"password": "x" * 513}).errcode == "M_INVALID_PARAM"


def test_taken_names_can_be_hidden(sqlite_database: Database) -> None:
    server = AccountsServer(
        sqlite_database,
        rules=RegistrationRules(enabled=True, without_verification=True, reveals_taken_names=False),
    )
    server.register("alice")
    assert server.request("GET", "register/available?username=alice").json == {"available": True}
    assert server.request("POST", "register", {"username": "alice", "password": "x"}).status == 401
    assert (
        server.request(
            "POST", "register", {"username": "alice", "password": "x", "auth": DUMMY}
        ).errcode
        == "M_USER_IN_USE"
    )


async def test_registration_tokens_are_limited_in_uses_and_time(database: Database) -> None:
    server = AccountsServer(database, rules=WITH_TOKEN)
    tokens = server.registration_tokens

    def valid(token: str) -> bool:
        answer = server.request(
            "GET", f"/_matrix/client/v1/register/{TOKEN_STAGE}/validity?token={token}"
        )
        return bool(answer.json["valid"])

    await database.write(
        "t", tokens.add_registration_token, RegistrationTokenRow("twice", uses_allowed=2)
    )
    expires = int(server.clock.seconds() * 1000) + 60_000
    await database.write(
        "t", tokens.add_registration_token, RegistrationTokenRow("brief", expires_ts=expires)
    )
    assert valid("twice")
    assert valid("brief")
    assert not valid("unknown")

    def attempt(token: str, **further: object) -> tuple[int, dict[str, object]]:
        session = server.request("POST", "register", further).json["session"]
        auth = {"type": TOKEN_STAGE, "token": token, "session": session}
        answer = server.request("POST", "register", {**further, "auth": auth})
        return answer.status, answer.json

    assert attempt("twice")[0] == 200
    status, body = attempt("unknown")
    assert (status, body["errcode"]) == (401, "M_FORBIDDEN")
    assert body["flows"] == [{"stages": [TOKEN_STAGE]}]
    assert body["session"]
    assert attempt("twice")[0] == 200
    assert not valid("twice")
    assert attempt("twice")[0] == 401
    row = await tokens.get_registration_token("twice")
    assert row is not None
    assert (row.pending, row.completed) == (0, 2)

    server.clock.advance(61)
    assert not valid("brief")
    assert attempt("brief")[0] == 401
    # Without a session, and with the dummy stage instead.
    assert (
        server.request(
            "POST", "register", {"auth": {"type": TOKEN_STAGE, "token": "unknown"}}
        ).status
        == 401
    )
    assert server.request("POST", "register", {"auth": DUMMY}).status == 401


async def test_the_use_of_a_failed_registration_is_released(database: Database) -> None:
    server = AccountsServer(database, rules=WITH_TOKEN)
    tokens = server.registration_tokens
    await database.write(
        "t", tokens.add_registration_token, RegistrationTokenRow("once", uses_allowed=1)
    )
    await database.write(
        "t", server.account_store.add_account, AccountRow("@alice:example.org", None, 0)
    )
    # The write finds the taken name after the token is reserved.
    session = server.request("POST", "register", {}).json["session"]
    auth = {"type": TOKEN_STAGE, "token": "once", "session": session}
    assert (
        server.request(
            "POST", "register", {"username": "alice", "password": "x", "auth": auth}
        ).errcode
        == "M_USER_IN_USE"
    )
    assert not await server.registration.is_token_valid("once")
    server.clock.advance(15 * 60 + 1)
    assert await server.uia.do_sweep(100) > 0
    assert await server.registration.is_token_valid("once")


@pytest.mark.parametrize("claimed_first", [False, True])
async def test_a_use_reserved_in_a_concurrent_flow_is_released(
    database: Database, monkeypatch: pytest.MonkeyPatch, claimed_first: bool
) -> None:
    """Two concurrent requests of one session, each completing another flow."""
    server = AccountsServer(database)
    uia, tokens = server.uia, server.registration_tokens
    await database.write(
        "t", tokens.add_registration_token, RegistrationTokenRow("once", uses_allowed=1)
    )
    operation = UIAOperation("POST register", None, "10.0.0.1")
    flows = [["m.login.dummy"], [TOKEN_STAGE]]
    with pytest.raises(AuthenticationRequired) as challenge:
        await uia.check(operation, flows, None)
    session = {"session": challenge.value.session_id}
    confirmed: list[Confirmation] = []
    check = RegistrationTokenStage.check

    async def check_with_concurrent_request(
        self: RegistrationTokenStage, auth: AuthData, operation: UIAOperation
    ) -> str:
        monkeypatch.undo()
        dummy = {"type": "m.login.dummy", **session}
        confirmed.append(await uia.check(operation, flows, dummy, keep_session=True))
        if claimed_first:
            await database.write("claim", uia.claim, confirmed[0], "@alice:example.org")
        return await check(self, auth, operation)

    monkeypatch.setattr(RegistrationTokenStage, "check", check_with_concurrent_request)
    auth = {"type": TOKEN_STAGE, "token": "once", **session}
    await uia.check(operation, flows, auth, keep_session=True)
    if not claimed_first:
        await database.write("claim", uia.claim, confirmed[0], "@alice:example.org")
    with pytest.raises(UIASessionUsed):
        await database.write("claim", uia.claim, confirmed[0], "@bob:example.org")
    server.clock.advance(15 * 60 + 1)
    assert await uia.do_sweep(100) == 1
    row = await tokens.get_registration_token("once")
    assert row is not None
    assert (row.pending, row.completed) == (0, 0)


VECTORS = [
    ("ada", "correct horse", False, None, "c0eaf936391c517567149eefb5f6cc253ce2000b"),
    ("ada", "correct horse", True, None, "0a909bba62ba572627e925093ea4b974c2fb82b1"),
    ("ada", "correct horse", True, "bot", "a78cb605a3164171e3baf1a2f9051e19544aa5d6"),
    ("Zoë", "pässword", False, None, "f8241ff53cedb4fc307de696f47f617d20941c39"),
]


@pytest.mark.parametrize(("username", "password", "admin", "user_type", "mac"), VECTORS)
def test_the_mac_of_shared_secret_registration_matches_known_values(
    username: str, password: str, admin: bool, user_type: str | None, mac: str
) -> None:
    requested = RegistrationRequest(
        username=username, password=password, is_admin=admin, user_type=user_type
    )
    assert compute_mac("example-shared-secret", "5c1e0f", requested) == mac


ADMIN_PATH = "/_synapse/admin/v1/register"


def _shared(
    server: AccountsServer, nonce: str, *, mac: str | None = None, **body: object
) -> Answer:
    requested = RegistrationRequest(
        username=str(body.get("username")),
        password=str(body.get("password")),
        is_admin=bool(body.get("admin")),
    )
    signed = {"nonce": nonce, "mac": mac or compute_mac(SHARED_SECRET, nonce, requested), **body}
    return server.request("POST", ADMIN_PATH, signed)


def test_shared_secret_registration_uses_each_nonce_once(database: Database) -> None:
    server = AccountsServer(database, rules=RegistrationRules())

    def nonce() -> str:
        return str(server.request("GET", ADMIN_PATH).json["nonce"])

    once = nonce()
    done = _shared(
        server,
        once,
        username="Ada",
        password="correct horse",
        admin=True,
        displayname="Ada L.",
        user_type=None,
    )
    assert done.status == 200
    assert done.json["user_id"] == "@ada:example.org"
    assert done.json["home_server"] == "example.org"
    assert server.request("GET", "profile/@ada:example.org").json == {"displayname": "Ada L."}
    assert _shared(server, once, username="bob", password="x").status == 400

    wrong = _shared(server, nonce(), mac="00", username="bob", password="x")
    assert (wrong.status, wrong.json["error"]) == (403, "HMAC incorrect")
    taken = _shared(server, nonce(), username="ada", password="x")
    assert (taken.errcode, taken.json["error"]) == ("M_USER_IN_USE", "User ID already taken")
    late = nonce()
    server.clock.advance(61)
    assert _shared(server, late, username="bob", password="x").status == 400
    assert _shared(server, nonce(), username="_bot", password="x", inhibit_login=True).json == {
        "user_id": "@_bot:example.org",
        "home_server": "example.org",
    }


def test_shared_secret_registration_needs_a_secret(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, shared_secret=None)
    assert server.request("GET", ADMIN_PATH).status == 400
    assert _shared(server, "x", username="bob", password="x").status == 400


async def test_a_created_token_expires(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rules=WITH_TOKEN)
    token = await server.registration.do_create_token(uses_allowed=None, seconds=60)
    path = f"/_matrix/client/v1/register/{TOKEN_STAGE}/validity?token={token}"
    assert server.request("GET", path).json == {"valid": True}
    server.clock.advance(61)
    assert server.request("GET", path).json == {"valid": False}


@pytest.mark.parametrize("rules", [OPEN, WITH_TOKEN])
async def test_concurrent_requests_of_one_session_create_one_account(
    database: Database, rules: RegistrationRules
) -> None:
    server = AccountsServer(database, rules=rules)
    auth: dict[str, str] = dict(DUMMY)
    if rules.requires_token:
        await database.write(
            "t",
            server.registration_tokens.add_registration_token,
            RegistrationTokenRow("key", uses_allowed=1),
        )
        auth = {"type": TOKEN_STAGE, "token": "key"}
    auth["session"] = server.request("POST", "register", {}).json["session"]
    bodies = [
        {"username": name, "password": "wonderland", "auth": auth, "device_id": f"D{number}"}
        for number, name in enumerate(["alice", "alice", "bob", "carol", "dave"])
    ]
    server.threads.hold()
    requests = [
        server.http.start("POST", "/_matrix/client/v3/register", json=body) for body in bodies
    ]
    assert len(server.threads.held) == len(requests)
    server.threads.release()
    answers = [pending.answer for pending in requests]
    created = {answer.json["user_id"] for answer in answers if answer.status == 200}
    assert len(created) == 1
    assert {answer.errcode for answer in answers if answer.status != 200} == {"M_FORBIDDEN"}
    users = await server.account_store.get_accounts(
        [f"@{name}:example.org" for name in ("alice", "bob", "carol")]
    )
    assert set(users) <= created
    if "@alice:example.org" in created:  # the equal request gets the same account
        assert [answer.status for answer in answers[:2]] == [200, 200]
    row = await server.registration_tokens.get_registration_token("key")
    assert row is None or (row.pending, row.completed) == (0, 1)


async def test_a_taken_name_leaves_the_uia_session_valid(server: AccountsServer) -> None:
    session = server.request("POST", "register", {}).json["session"]
    body = {"username": "alice", "password": "wonderland", "auth": {**DUMMY, "session": session}}
    server.threads.hold()
    pending = server.http.start("POST", "/_matrix/client/v3/register", json=body)
    assert len(server.threads.held) == 1
    alice = RegistrationRequest(username="alice")
    await server.registration.do_register_for_provider(alice, lambda *_: None)
    server.threads.release()
    assert pending.answer.errcode == "M_USER_IN_USE"
    assert server.request("POST", "register", {**body, "username": "bob"}).status == 200


async def test_an_ended_uia_session_is_not_restored(server: AccountsServer) -> None:
    alice = server.register()
    session = alice.post("delete_devices", {"devices": ["A"]}).json["session"]
    proof = password_auth("alice", alice.password)
    body = {"devices": ["A"], "auth": {**proof, "session": session}}
    server.threads.hold()
    path = "/_matrix/client/v3/delete_devices"
    requests = [server.http.start("POST", path, json=body, token=alice.token) for _ in range(4)]
    assert len(server.threads.held) == len(requests)
    server.threads.release()
    assert sorted(pending.answer.status for pending in requests) == [200, 401, 401, 401]
