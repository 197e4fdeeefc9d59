"""Sign-in with a password, rate limits, and the lifetime of sessions."""

from collections.abc import Sequence

import bcrypt
import pytest

from federation.peers.token_buckets import Rate
from homeserver.api.limits import Limit
from homeserver.config.limits import LoginLimits
from homeserver.services.login.sessions import TokenLifetimes
from storage.accounts.accounts import AccountRow
from storage.accounts.audit import AuditStore
from storage.engine.database import Database
from tests.helpers.accounts import AccountsServer, User
from tests.helpers.http import Answer, Pending

HOUR = 3_600_000
BRIEF = TokenLifetimes(
    refreshable_access_token=60_000,
    refresh_token=HOUR,
    nonrefreshable_access_token=600_000,
    session=3 * HOUR,
)


@pytest.fixture
def server(database: Database) -> AccountsServer:
    return AccountsServer(database)


def test_login_flows_depend_on_the_configuration(sqlite_database: Database) -> None:
    assert AccountsServer(sqlite_database).request("GET", "login").json == {
        "flows": [{"type": "m.login.password"}]
    }
    without = AccountsServer(sqlite_database, password_login=False)
    assert without.request("GET", "login").errcode == "M_UNRECOGNIZED"
    assert without.login().status == 403


@pytest.mark.parametrize("name", ["alice", "Alice", "@alice:example.org", "@Alice:example.org"])
def test_a_user_name_is_accepted_in_several_forms(server: AccountsServer, name: str) -> None:
    server.register("alice")
    answer = server.login(name, device_id="LAPTOP", initial_device_display_name="Laptop")
    assert answer.status == 200
    assert answer.json["user_id"] == "@alice:example.org"
    assert answer.json["device_id"] == "LAPTOP"
    assert User(server, answer.json, "").get("devices/LAPTOP").json["display_name"] == "Laptop"
    assert (
        server.request(
            "POST", "login", {"type": "m.login.password", "user": name, "password": "wonderland"}
        ).status
        == 200
    )


def test_wrong_passwords_and_unknown_users_get_the_same_response(server: AccountsServer) -> None:
    server.register("alice")
    server.threads.runs = 0
    wrong, unknown = server.login(password="guess"), server.login("nobody")
    assert (wrong.status, wrong.body) == (unknown.status, unknown.body)
    assert (wrong.status, wrong.errcode) == (403, "M_FORBIDDEN")
    assert server.threads.runs == 2
    assert server.login("@alice:elsewhere.org").status == 403
    assert server.login("\0").status == 403


@pytest.mark.parametrize(
    ("body", "status", "errcode"),
    [
        ({"type": "m.login.token", "token": "x"}, 400, "M_UNKNOWN"),
        ({"type": "m.login.password"}, 400, "M_MISSING_PARAM"),
        ({"type": "m.login.password", "user": "alice"}, 400, "M_MISSING_PARAM"),
        (
            {"type": "m.login.password", "identifier": {"type": "m.id.user"}, "password": "x"},
            400,
            "M_MISSING_PARAM",
        ),
        (
            {
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": 1},
                "password": "x",
            },
            400,
            "M_BAD_JSON",
        ),
        (
            {
                "type": "m.login.password",
                "identifier": {"type": "m.id.x", "user": "a"},
                "password": "x",
            },
            400,
            "M_BAD_JSON",
        ),
        (
            {
                "type": "m.login.password",
                "identifier": {"type": "m.id.thirdparty", "medium": "email", "address": "a@b.c"},
                "password": "x",
            },
            403,
            "M_FORBIDDEN",
        ),
        (
            {
                "type": "m.login.password",
                "identifier": {"type": "m.id.phone", "country": "UZ", "phone": "1"},
                "password": "x",
            },
            403,
            "M_FORBIDDEN",
        ),
        (
            {"type": "m.login.password", "medium": "email", "address": "a@b.c", "password": "x"},
            403,
            "M_FORBIDDEN",
        ),
        (
            {"type": "m.login.password", "user": "alice", "password": "x", "device_id": ""},
            400,
            "M_INVALID_PARAM",
        ),
        (
            {
                "type": "m.login.password",
                "user": "alice",
                "password": "x",
                "initial_device_display_name": "\0",
            },
            400,
            "M_INVALID_PARAM",
        ),
    ],
)
def test_malformed_requests_are_refused(
    sqlite_database: Database, body: object, status: int, errcode: str
) -> None:
    answer = AccountsServer(sqlite_database).request("POST", "login", body)
    assert (answer.status, answer.errcode) == (status, errcode)


def test_failures_are_limited_by_account_and_by_ip_address(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.LOGIN_FAILED: Rate(0.1, 3)})
    server.register("alice")
    for _ in range(3):
        assert server.login(password="guess").status == 403
    limited = server.login()
    assert (limited.status, limited.errcode) == (429, "M_LIMIT_EXCEEDED")
    assert limited.json["retry_after_ms"] > 0
    assert "retry-after" in limited.headers
    server.clock.advance(10.1)
    assert server.login().status == 200
    # From one IP address, with any names.
    server.clock.advance(60)
    statuses = [server.login(f"nobody{number}").status for number in range(40)]
    assert statuses == [403] * statuses.index(429) + [429] * (40 - statuses.index(429))
    assert 10 < statuses.index(429) < 40
    assert server.login("nobody", ip="10.0.0.2").status == 403


def test_successful_sign_ins_to_an_account_are_limited(sqlite_database: Database) -> None:
    """Wrong passwords, which anybody can send, do not count against this limit."""
    limits = LoginLimits()
    server = AccountsServer(
        sqlite_database,
        rates={Limit.LOGIN_ACCOUNT: Rate(limits.account.per_second, limits.account.burst_count)},
    )
    server.register("alice")
    server.register("bob")
    assert [server.login(password="guess").status for _ in range(10)] == [403] * 10
    assert [server.login().status for _ in range(6)] == [200] * 5 + [429]
    assert server.login("bob").status == 200
    server.clock.advance(1 / limits.account.per_second + 1)
    assert [server.login().status for _ in range(2)] == [200, 429]


def test_many_users_sign_in_concurrently_from_one_address(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.LOGIN_FAILED: Rate(0.1, 3)})
    names = [f"pupil{number}" for number in range(40)]
    for name in names:
        server.register(name)
    server.threads.hold()
    bodies = [
        {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": name},
            "password": "wonderland",
        }
        for name in names
    ]
    requests = [server.http.start("POST", "/_matrix/client/v3/login", json=body) for body in bodies]
    server.threads.release()
    assert {pending.answer.status for pending in requests} == {200}


def start_sign_ins(
    server: AccountsServer, passwords: Sequence[str], name: str = "alice"
) -> list[Pending]:
    """Start concurrent sign-ins to one account, each from its own IP address."""
    return [
        server.http.start(
            "POST",
            "/_matrix/client/v3/login",
            json={
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": name},
                "password": password,
                "device_id": f"D{number}",
            },
            ip=f"10.0.1.{number}",
        )
        for number, password in enumerate(passwords)
    ]


def test_devices_of_one_account_sign_in_concurrently(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.LOGIN_FAILED: Rate(0.1, 3)})
    server.register("alice")
    server.threads.hold()
    requests = start_sign_ins(server, ["wonderland"] * 12)
    server.threads.release()
    assert [pending.answer.status for pending in requests] == [200] * 12
    assert [server.login(password="guess").status for _ in range(4)] == [403, 403, 403, 429]


def test_concurrent_guesses_are_no_more_than_sequential_ones(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.LOGIN_FAILED: Rate(0.1, 3)})
    server.register("alice")
    before = server.threads.runs
    server.threads.hold()
    requests = start_sign_ins(server, ["guess"] * 30)
    assert [pending.answer.status for pending in requests if pending.done] == [
        429
    ] * 7  # above the maximum of waiting attempts
    server.threads.release()
    assert sorted(pending.answer.status for pending in requests) == [403] * 3 + [429] * 27
    assert server.threads.runs == before + 3


def test_a_right_password_does_not_reset_concurrent_guesses(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.LOGIN_FAILED: Rate(0.1, 3)})
    server.register("alice")
    server.threads.hold()
    requests = start_sign_ins(server, ["wonderland", "guess", "guess", "guess", "guess", "guess"])
    server.threads.release()
    assert sorted(pending.answer.status for pending in requests) == [200, 403, 403, 403, 429, 429]
    assert server.login().status == 429


def test_the_wait_of_an_attempt_is_bounded(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.LOGIN_FAILED: Rate(0.001, 3)})
    server.register("alice")
    server.threads.hold()
    requests = start_sign_ins(server, ["wonderland"] * 5)
    server.clock.advance(21)
    assert [pending.done for pending in requests] == [False] * 3 + [True] * 2
    assert [pending.answer.status for pending in requests[3:]] == [429, 429]
    server.threads.release()
    assert [pending.answer.status for pending in requests[:3]] == [200] * 3
    assert server.login().status == 200


def test_concurrent_guesses_count_against_the_ip_address(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.LOGIN_FAILED: Rate(0.1, 3)})
    server.threads.hold()
    bodies = [
        {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": f"nobody{n}"},
            "password": "guess",
        }
        for n in range(100)
    ]
    requests = [
        server.http.start("POST", "/_matrix/client/v3/login", json=body, ip="10.0.0.1")
        for body in bodies
    ]
    server.threads.release()
    assert {pending.answer.status for pending in requests} == {403}
    server.clock.advance(60)
    assert server.login("somebody").status == 429
    server.clock.advance(30)
    assert server.login("somebody").status == 403


def test_a_sign_in_on_a_known_device_ends_its_session_and_keeps_its_name(
    server: AccountsServer,
) -> None:
    alice = server.register("alice", device_id="PHONE", initial_device_display_name="Phone")
    second = User(
        server, server.login(device_id="PHONE", initial_device_display_name="Other").json, ""
    )
    assert alice.get("account/whoami").errcode == "M_UNKNOWN_TOKEN"
    assert second.get("devices").json["devices"][0]["display_name"] == "Phone"


async def test_locked_and_deactivated_accounts_cannot_sign_in(server: AccountsServer) -> None:
    alice = server.register("alice")
    await server.accounts.do_set_flags(alice.id, suspended=True)
    assert alice.get("account/whoami").status == 200
    assert alice.put("profile/{me}/displayname", {"displayname": "A"}).errcode == "M_USER_SUSPENDED"
    assert server.login().status == 200

    await server.accounts.do_set_flags(alice.id, suspended=False, locked=True)
    locked = alice.get("account/whoami")
    assert (locked.status, locked.errcode, locked.json["soft_logout"]) == (
        401,
        "M_USER_LOCKED",
        True,
    )
    assert server.login().errcode == "M_USER_LOCKED"
    assert server.login(password="guess").errcode == "M_FORBIDDEN"
    await server.accounts.do_set_flags(alice.id, locked=False)
    assert alice.is_signed_in()

    await server.accounts.do_set_flags(alice.id, locked=True)
    assert alice.post("logout", {}).status == 200
    await server.deactivation.do_deactivate(alice.id, erase=False)
    assert (server.login().status, server.login().errcode) == (403, "M_FORBIDDEN")


async def test_imported_bcrypt_hashes_are_replaced_at_the_first_sign_in(database: Database) -> None:
    server = AccountsServer(database)
    imported = bcrypt.hashpw(b"wonderland" + b"pepper", bcrypt.gensalt(4)).decode()
    await database.write(
        "t", server.account_store.add_account, AccountRow("@alice:example.org", imported, 0)
    )
    assert server.login(password="guess").status == 403
    assert server.login().status == 200
    account = (await server.account_store.get_accounts(["@alice:example.org"]))[
        "@alice:example.org"
    ]
    assert account.password_hash is not None
    assert account.password_hash.startswith("$argon2id$")
    assert server.login().status == 200


def test_a_password_in_another_unicode_form_is_accepted(server: AccountsServer) -> None:
    server.register("alice", "caf\u00e9")
    assert server.login(password="cafe\u0301").status == 200


def test_the_login_response_has_the_well_known_base_url(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, public_baseurl="https://chat.example.org/")
    server.register()
    assert server.login().json["well_known"] == {
        "m.homeserver": {"base_url": "https://chat.example.org/"}
    }


def _refresh(server: AccountsServer, token: str) -> Answer:
    return server.request("POST", "refresh", {"refresh_token": token})


def _is_valid(server: AccountsServer, token: str) -> bool:
    return server.request("GET", "account/whoami", token=token).status == 200


def test_an_expired_access_token_is_refreshed(database: Database) -> None:
    server = AccountsServer(database, lifetimes=BRIEF)
    server.register("alice")
    first = server.login(refresh_token=True, device_id="PHONE").json
    assert first["expires_in_ms"] == 60_000
    server.clock.advance(61)
    expired = server.request("GET", "account/whoami", token=first["access_token"])
    assert (expired.status, expired.errcode, expired.json["soft_logout"]) == (
        401,
        "M_UNKNOWN_TOKEN",
        True,
    )
    second = _refresh(server, first["refresh_token"])
    assert second.status == 200
    assert set(second.json) == {"access_token", "refresh_token", "expires_in_ms"}
    assert (
        server.request("GET", "account/whoami", token=second.json["access_token"]).json["device_id"]
        == "PHONE"
    )
    assert _refresh(server, first["refresh_token"]).errcode == "M_UNKNOWN_TOKEN"


def test_refreshes_do_not_count_as_sign_ins(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, rates={Limit.LOGIN: Rate(0.003, 2)})
    server.register("alice")
    for _ in range(5):
        assert server.request("GET", "login").status == 200
    session = server.login(refresh_token=True).json
    for _ in range(5):  # an office of people whose clients refresh their tokens
        renewed = _refresh(server, session["refresh_token"])
        assert renewed.status == 200
        session = renewed.json
    assert _refresh(server, session["refresh_token"][:-1] + "!").errcode == "M_UNKNOWN_TOKEN"
    assert [server.login().status, server.login().status] == [200, 429]


def test_refreshes_do_not_extend_the_session_lifetime(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, lifetimes=BRIEF)
    server.register("alice")
    session = server.login(refresh_token=True).json
    for _ in range(5):
        server.clock.advance(1795)
        session = _refresh(server, session["refresh_token"]).json
    server.clock.advance(1790)
    assert _refresh(server, session["refresh_token"]).json["expires_in_ms"] == 35_000
    server.clock.advance(36)
    ended = _refresh(server, session["refresh_token"])
    assert (ended.status, ended.errcode, ended.json["soft_logout"]) == (
        401,
        "M_UNKNOWN_TOKEN",
        True,
    )


def test_tokens_without_refresh_expire_with_soft_logout(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database, lifetimes=BRIEF)
    alice = server.register("alice")
    server.clock.advance(599)
    assert alice.is_signed_in()
    server.clock.advance(2)
    assert alice.get("account/whoami").json["soft_logout"] is True
    unknown = server.request("GET", "account/whoami", token="syt_unknown")
    assert unknown.errcode == "M_UNKNOWN_TOKEN"
    assert not unknown.json.get("soft_logout", False)


async def test_a_locked_account_cannot_refresh(sqlite_database: Database) -> None:
    server = AccountsServer(sqlite_database)
    alice = server.register()
    session = server.login(refresh_token=True).json
    await server.accounts.do_set_flags(alice.id, locked=True)
    for _ in range(2):
        assert _refresh(server, session["refresh_token"]).errcode == "M_USER_LOCKED"
    records = await AuditStore(sqlite_database).get_records(alice.id, 10)
    refused = [
        (row.detail, row.address, row.device_id)
        for row in records
        if row.event == "sign_in_refused"
    ]
    assert refused == [("locked", "10.0.0.1", session["device_id"])]
    await server.accounts.do_set_flags(alice.id, locked=False)
    assert _refresh(server, session["refresh_token"]).status == 200


def test_logout_ends_one_session_and_logout_all_the_others(server: AccountsServer) -> None:
    phone = server.register("alice", device_id="PHONE")
    session = server.login(device_id="LAPTOP", refresh_token=True).json
    laptop, desktop = (
        User(server, session, ""),
        User(server, server.login(device_id="DESKTOP").json, ""),
    )
    assert laptop.post("logout", {}).json == {}
    assert not laptop.is_signed_in()
    assert phone.is_signed_in()
    assert _refresh(server, session["refresh_token"]).status == 401
    assert [device["device_id"] for device in phone.get("devices").json["devices"]] == [
        "DESKTOP",
        "PHONE",
    ]
    assert phone.post("logout/all", {}).json == {}
    assert not phone.is_signed_in()
    assert not desktop.is_signed_in()
