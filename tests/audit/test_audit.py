"""The audit log of accounts, as their owners and administrators see it."""

from pathlib import Path

import pytest

from federation.protocol.ids import UserID
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.login.access_tokens import RACE_MS
from tests.helpers.audit_records import audit_records
from tests.helpers.browser import Browser
from tests.helpers.logins import password_auth
from tests.helpers.oauth import Program
from tests.helpers.server import TestServer, User
from tests.oauth.conftest import browser, program, server

__all__ = ["browser", "program", "server"]

ALICE = UserID("@alice:example.org")


def admin(server: TestServer) -> User:
    boss = server.register("boss")
    database = server.app.database
    server.run(
        database.write("make_admin", AccountStore(database).set_flags, boss.user_id, is_admin=True)
    )
    return boss


def events(boss: User, user_id: str = ALICE) -> list[str]:
    """Return the recorded events, oldest first."""
    answer = boss.get(f"/_mahalla/admin/v1/users/{user_id}/audit?limit=1000")
    assert answer.status == 200, answer.body
    return [str(record["event"]) for record in reversed(answer.json["records"])]


def test_events_of_an_account_are_recorded_in_order(program: Program, browser: Browser) -> None:
    server = program.server
    boss = admin(server)
    began = int(server.clock.seconds() * 1000)
    browser.open(program.request())
    browser.send("/_mahalla/sign_in", name="alice", password="wrong")
    program.take(program.exchange(program.code(browser)))
    server.run(server.app.accounts.last_seen.flush())
    stolen = str(program.tokens["refresh_token"])
    program.take(program.refresh())
    server.clock.advance(RACE_MS / 1000)
    assert program.refresh(stolen).status == 400
    accounts = server.app.user_data.accounts
    for locked in (True, True, False):
        server.run(accounts.do_set_flags(ALICE, locked=locked))
    server.run(accounts.do_set_password(ALICE, "new", log_out_all=True))
    server.run(server.app.user_data.deactivation.do_deactivate(ALICE, erase=False))
    assert events(boss) == [
        "registered",
        "session_began",
        "sign_in_failed",
        "browser_signed_in",
        "app_allowed",
        "session_began",
        "token_reused",
        "session_ended",
        "locked",
        "browser_signed_out",
        "unlocked",
        "password_changed",
        "session_ended",
        "deactivated",
    ]
    records = boss.get(f"/_mahalla/admin/v1/users/{ALICE}/audit").json["records"]
    failed = next(record for record in records if record["event"] == "sign_in_failed")
    assert failed == {
        "ts": began,
        "event": "sign_in_failed",
        "address": "127.0.0.1",
        "device_id": None,
        "by": None,
        "detail": None,
    }


def test_the_address_of_new_sessions_is_recorded(program: Program, browser: Browser) -> None:
    server = program.server
    boss = admin(server)
    program.take(program.exchange(program.code(browser)))
    body = password_auth("alice")
    assert (
        server.client.request("POST", "/_matrix/client/v3/login", json=body, ip="10.0.0.1").status
        == 200
    )
    carol = {"username": "carol", "password": "wonderland", "auth": {"type": "m.login.dummy"}}
    made = server.client.request(
        "POST", "/_matrix/client/v3/register", json=carol, ip="2001:db8::1"
    )
    assert made.status == 200, made.body
    records = [
        (record["event"], record["address"])
        for user_id in (made.json["user_id"], ALICE)
        for record in boss.get(f"/_mahalla/admin/v1/users/{user_id}/audit").json["records"]
        if record["event"] in ("registered", "session_began")
    ]
    assert records[:4] == [
        ("session_began", "2001:db8::/64"),
        ("registered", "2001:db8::/64"),
        ("session_began", "10.0.0.1"),
        ("session_began", "127.0.0.1"),
    ]


def test_the_address_of_changes_is_recorded(program: Program, browser: Browser) -> None:
    server = program.server
    boss = admin(server)
    program.take(program.exchange(program.code(browser)))
    stolen = str(program.tokens["refresh_token"])
    program.take(program.refresh())
    server.clock.advance(RACE_MS / 1000)
    assert program.refresh(stolen).status == 400
    body = password_auth("alice")
    signed_in = User(server, server.post("/_matrix/client/v3/login", body).json)
    assert signed_in.post("/_matrix/client/v3/logout", {}).status == 200
    server.post("/_matrix/client/v3/login", body)
    browser.open("/_mahalla/account")
    form = next(form for form in browser.page.forms if form.fields.get("do") == "password")
    new = {
        "old_password": "wonderland",
        "password": "looking-glass",
        "password_again": "looking-glass",
    }
    browser.post(form.action, {**form.fields, **new})
    # the browser keeps its session
    assert [event for event, _ in audit_records(server)].count("browser_signed_in") == 1
    browser.open("/_mahalla/account?action=org.matrix.account_deactivate")
    browser.send("/_mahalla/account", old_password="looking-glass")
    records = boss.get(f"/_mahalla/admin/v1/users/{ALICE}/audit").json["records"]
    assert records[0]["event"] != "sign_in_failed"
    expected = {
        "token_reused",
        "session_ended",
        "password_changed",
        "deactivated",
        "browser_signed_out",
    }
    recorded = [
        (record["event"], record["address"]) for record in records if record["event"] in expected
    ]
    assert {event for event, _ in recorded} == expected
    assert {address for _, address in recorded} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"code_verifier": "x" * 50}, "code_verifier does not match the code_challenge"),
        (
            {"redirect_uri": "https://elsewhere.example/"},
            "redirect_uri differs from that of the authorization request",
        ),
    ],
)
def test_a_stolen_code_is_recorded(
    program: Program, browser: Browser, changed: dict[str, str], why: str
) -> None:
    code = program.code(browser)
    for _ in range(2):
        assert program.exchange(code, **changed).status == 400
    assert program.exchange(code).status == 400
    assert [record for record in audit_records(program.server) if record[0] == "token_reused"] == [
        ("token_reused", why)
    ]


def test_the_record_names_the_administrator(server: TestServer) -> None:
    boss = admin(server)
    moderation = f"/_matrix/client/v1/admin/suspend/{ALICE}"
    assert boss.put(moderation, {"suspended": True}).status == 200
    assert boss.put(f"/_mahalla/admin/v1/users/{ALICE}/approval", {"approved": False}).status == 200
    assert boss.put(f"/_mahalla/admin/v1/users/{ALICE}/approval", {"approved": True}).status == 200
    records = boss.get(f"/_mahalla/admin/v1/users/{ALICE}/audit").json["records"]
    assert [(record["event"], record["by"]) for record in records[:3]] == [
        ("approved", boss.user_id),
        ("approval_withdrawn", boss.user_id),
        ("suspended", boss.user_id),
    ]


def test_all_actions_of_administrators_name_them(server: TestServer) -> None:
    boss = admin(server)
    users, of_carol = "/_synapse/admin/v2/users/", "@carol:example.org"
    assert boss.put(users + of_carol, {"password": "wonderland", "admin": True}).status == 201
    for changed in (
        {"admin": False},
        {"user_type": "bot"},
        {"user_type": "bot"},
        {"locked": True},
        {"locked": False},
    ):
        assert boss.put(users + of_carol, changed).status == 200
    for suspended in (True, False):
        assert (
            boss.put(
                f"/_matrix/client/v1/admin/suspend/{of_carol}", {"suspended": suspended}
            ).status
            == 200
        )
    ban = f"/_synapse/admin/v1/users/{of_carol}/shadow_ban"
    assert (boss.post(ban).status, boss.delete(ban).status) == (200, 200)
    assert boss.post(f"/_synapse/admin/v1/deactivate/{of_carol}").status == 200
    records = boss.get(f"/_mahalla/admin/v1/users/{of_carol}/audit").json["records"]
    assert {record["by"] for record in records} == {boss.user_id}
    assert [(record["event"], record["detail"]) for record in reversed(records)] == [
        ("registered", None),
        ("admin_granted", None),
        ("admin_revoked", None),
        ("user_type_changed", "bot"),
        ("locked", None),
        ("unlocked", None),
        ("suspended", None),
        ("unsuspended", None),
        ("shadow_banned", None),
        ("shadow_ban_lifted", None),
        ("deactivated", None),
    ]


def test_a_refusal_after_the_right_password_is_recorded(server: TestServer) -> None:
    boss = admin(server)
    accounts = server.app.user_data.accounts
    login = password_auth("alice")
    server.run(accounts.do_set_flags(ALICE, locked=True))
    refused = server.client.request("POST", "/_matrix/client/v3/login", json=login, ip="10.0.0.1")
    assert refused.errcode == "M_USER_LOCKED"
    # a repeated refusal is not recorded again
    server.client.request("POST", "/_matrix/client/v3/login", json=login, ip="10.0.0.1")
    page = Browser(server)
    page.open("/_mahalla/account")
    page.send("/_mahalla/sign_in", name="alice", password="wonderland")
    server.run(accounts.do_set_flags(ALICE, locked=False))
    server.run(server.app.user_data.deactivation.do_deactivate(ALICE, erase=False))
    # a deactivated account has no password, so nobody authenticated as its owner
    server.post("/_matrix/client/v3/login", login)
    records = boss.get(f"/_mahalla/admin/v1/users/{ALICE}/audit").json["records"]
    assert [(each["event"], each["detail"], each["address"]) for each in reversed(records)][2:] == [
        ("locked", None, None),
        ("sign_in_refused", "locked", "10.0.0.1"),
        ("sign_in_refused", "locked", "127.0.0.1"),
        ("unlocked", None, None),
        ("deactivated", None, None),
        ("session_ended", None, None),
        ("sign_in_failed", None, "127.0.0.1"),
    ]


def test_the_end_of_browser_sessions_is_recorded(server: TestServer, browser: Browser) -> None:
    def sign_in(page: Browser) -> None:
        page.open("/_mahalla/account")
        page.send("/_mahalla/sign_in", name="alice", password="wonderland")

    sign_in(browser)
    browser.send("/_mahalla/sign_out")
    assert audit_records(server)[-2:] == [("browser_signed_in", None), ("browser_signed_out", None)]
    sign_in(browser)
    sign_in(Browser(server))
    before = len(audit_records(server))
    form = next(form for form in browser.page.forms if form.fields.get("do") == "end_others")
    browser.post(form.action, form.fields)
    assert [event for event, _ in audit_records(server)[before:]] == [
        "session_ended",
        "browser_signed_out",
    ]
    browser.open("/_mahalla/account")
    assert browser.path == "/_mahalla/account"


def test_the_expiry_of_a_browser_session_is_recorded(server: TestServer, browser: Browser) -> None:
    def sign_in() -> None:
        browser.open("/_mahalla/account")
        browser.send("/_mahalla/sign_in", name="alice", password="wonderland")

    sign_in()
    began = int(server.clock.seconds() * 1000)
    server.clock.advance(25 * 3600)
    sign_in()  # in the same browser, before the sweep runs
    ended = ("browser_signed_out", "time_over")
    assert audit_records(server)[-3:] == [
        ("browser_signed_in", None),
        ended,
        ("browser_signed_in", None),
    ]
    server.clock.advance(25 * 3600)
    assert server.run(server.app.pages.sessions.do_sweep(10)) == 1
    assert audit_records(server)[-1] == ended
    records = server.run(server.app.accounts.audit.get_records(ALICE, 100))
    over = [record for record in reversed(records) if record.detail == "time_over"]
    assert [record.ts - began for record in over] == [24 * 3600_000, 49 * 3600_000]
    sign_in()
    assert "Signed out of this page automatically" in browser.words


def test_a_denied_client_is_recorded(program: Program, browser: Browser) -> None:
    browser.open(program.request())
    browser.send("/_mahalla/sign_in", name="alice", password="wonderland")
    browser.send(program.path_of("authorization_endpoint"), button="deny")
    assert audit_records(program.server)[-1] == ("app_denied", f"Element X ({program.client_id})")
    browser.open("/_mahalla/account")
    assert "An app was denied" in browser.words


def test_a_download_of_the_account_data_is_recorded_once(
    server: TestServer, browser: Browser
) -> None:
    browser.open("/_mahalla/account")
    browser.send("/_mahalla/sign_in", name="alice", password="wonderland")
    for _ in range(3):
        kept = browser.open("/_mahalla/account/export").json
    assert kept["records"][0]["event"] == "data_exported"
    server.clock.advance(601)
    browser.open("/_mahalla/account/export")
    assert [event for event, _ in audit_records(server)].count("data_exported") == 2


def test_the_first_use_of_a_client_is_recorded(program: Program, browser: Browser) -> None:
    boss = admin(program.server)
    browser.open(program.request())
    browser.send("/_mahalla/sign_in", name="alice", password="wonderland")
    program.code(browser)
    called = f"Element X ({program.client_id})"
    [record] = boss.get("/_mahalla/admin/v1/audit").json["records"]
    assert (record["event"], record["detail"], record["address"]) == (
        "client_registered",
        called,
        "127.0.0.1",
    )
    assert ("app_allowed", called) in audit_records(program.server)
    Program(program.server)  # the same client on another phone
    assert len(boss.get("/_mahalla/admin/v1/audit").json["records"]) == 1
    assert program.server.register("bob").get("/_mahalla/admin/v1/audit").errcode == "M_FORBIDDEN"


def test_a_login_token_from_a_session_is_recorded(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(
        tmp_path,
        sqlite_database,
        "login_via_existing_session: {enabled: true, require_ui_auth: false}\n",
    )
    token = server.register("alice").post("/_matrix/client/v1/login/get_token").json["login_token"]
    assert (
        server.post("/_matrix/client/v3/login", {"type": "m.login.token", "token": token}).status
        == 200
    )
    assert [event for event, _ in audit_records(server)][2:] == [
        "login_token_given",
        "session_began",
    ]


def test_a_new_address_is_recorded_once(server: TestServer) -> None:
    boss, bob = admin(server), server.register("bob")  # from 127.0.0.1
    for ip in ("127.0.0.1", "10.0.0.1", "10.0.0.1", "2001:db8::1", "2001:db8::2", "10.0.0.1"):
        server.clock.advance(200)
        server.client.request("GET", "/_matrix/client/v3/account/whoami", token=bob.token, ip=ip)
        server.run(server.app.accounts.last_seen.flush())
    assert events(boss, bob.user_id).count("new_address") == 2


def test_a_new_address_is_recorded_next_to_the_usual_one(server: TestServer) -> None:
    boss, bob = admin(server), server.register("bob")
    for ip in ("127.0.0.1", "10.0.0.9", "127.0.0.1"):  # the owner, a thief of the token, the owner
        server.client.request("GET", "/_matrix/client/v3/account/whoami", token=bob.token, ip=ip)
    for number in range(50):
        server.client.request(
            "GET", "/_matrix/client/v3/account/whoami", token=bob.token, ip=f"10.1.{number}.1"
        )
    server.run(server.app.accounts.last_seen.flush())
    records = boss.get(f"/_mahalla/admin/v1/users/{bob.user_id}/audit").json["records"]
    addresses = [record["address"] for record in records if record["event"] == "new_address"]
    assert "10.0.0.9" in addresses
    assert len(addresses) < 10


def test_the_owner_reads_the_records_in_their_language(
    server: TestServer, browser: Browser
) -> None:
    browser.languages = "ru"
    browser.open("/_mahalla/account")
    browser.send("/_mahalla/sign_in", name="alice", password="wrong")
    browser.send("/_mahalla/sign_in", name="alice", password="wonderland")
    assert "Введён неверный пароль" in browser.words
    program = Program(server)
    program.code(browser)
    browser.open("/_mahalla/account")
    assert "Element X · ELEMENTX01" in browser.words
    assert program.client_id not in browser.text
    server.clock.advance(91 * 24 * 3600)
    assert server.run(server.app.accounts.audit.do_sweep(100)) == 6


def test_other_users_cannot_read_the_records(server: TestServer) -> None:
    bob = server.register("bob")
    path = f"/_mahalla/admin/v1/users/{ALICE}/audit"
    assert bob.get(path).errcode == "M_FORBIDDEN"
    assert server.get(path).errcode == "M_MISSING_TOKEN"
    assert admin(server).get(f"{path}?limit=0").errcode == "M_INVALID_PARAM"
