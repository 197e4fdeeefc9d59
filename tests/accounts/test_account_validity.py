"""Expiry of accounts: refused requests, e-mails about the expiry, and renewal."""

import re
from pathlib import Path
from typing import Any

import pytest

from homeserver.config.load import ConfigError, load_config
from storage.engine.database import Database
from storage.threepids.threepids import ThreepidRow
from tests.helpers.browser import Browser
from tests.helpers.email_addresses import link_in_email
from tests.helpers.logins import log_in
from tests.helpers.oauth import Program
from tests.helpers.server import TestServer, User

DAY = 24 * 3600
MAIL = """public_baseurl: https://matrix.example.org/
rc_oauth: {}
email: {smtp_host: mail.example.org, notif_from: "server@example.org"}
rc_3pid_validation: *unlimited
login_via_existing_session: {enabled: true, require_ui_auth: false}
"""
VALIDITY = "account_validity: {enabled: true, period: 100d, renew_at: 10d}\n"
WHOAMI = "/_matrix/client/v3/account/whoami"
SEND_MAIL = "/_matrix/client/unstable/account_validity/send_mail"
ADMIN = "/_synapse/admin/v1/account_validity/validity"
EXPIRED = "ORG_MATRIX_EXPIRED_ACCOUNT"
SIGN_IN = "/_mahalla/sign_in"
RENEW = "/_matrix/client/unstable/account_validity/renew"


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(tmp_path, sqlite_database, MAIL + VALIDITY)


def register_expiring(server: TestServer, name: str = "alice", *, address: bool = True) -> User:
    """Register a user whose account expires."""
    user = server.register(name)
    if address:
        row = ThreepidRow("email", f"{name}@example.org", user.user_id, 1, 1)
        server.run(
            server.app.database.write("address", server.app.email.threepids.add_threepid, row)
        )
    assert server.run(server.app.accounts.renewals.do_set_missing_expiries(10)) == 1
    return user


def send_emails(server: TestServer) -> int:
    return server.run(server.app.accounts.renewals.do_send_emails(10))


def test_many_users_renew_from_one_ip_address(tmp_path: Path, sqlite_database: Database) -> None:
    # the default rate limits; no user requests an e-mail
    server = TestServer(
        tmp_path,
        sqlite_database,
        MAIL.replace("rc_3pid_validation: *unlimited\n", "rc_login: {}\n") + VALIDITY,
    )
    register_expiring(server)
    server.clock.advance(90 * DAY)
    assert send_emails(server) == 1
    browser = Browser(server)
    for _ in range(60):
        browser.post(RENEW, {"token": link_in_email(server).partition("=")[2]})
        assert browser.status == 200


def test_a_session_of_an_expired_account_can_only_log_out(server: TestServer) -> None:
    alice = register_expiring(server)
    server.clock.advance(100 * DAY - 1)
    assert alice.get(WHOAMI).status == 200
    server.clock.advance(1)
    refused = alice.get(WHOAMI)
    assert (refused.status, refused.errcode) == (403, EXPIRED)
    assert alice.get("/_matrix/client/v3/sync").errcode == EXPIRED
    assert alice.post("/_matrix/client/v3/logout").status == 200
    assert alice.get(WHOAMI).status == 401


def test_an_expired_account_cannot_sign_in_by_any_way(server: TestServer) -> None:
    alice = register_expiring(server)
    refreshable = log_in(server, "alice", refresh_token=True).json
    server.clock.advance(100 * DAY - 60)
    token = alice.post("/_matrix/client/v1/login/get_token").json["login_token"]
    program, browser = Program(server), Browser(server)
    code = program.code(browser)
    granted = Program(server, device_id="SECOND")
    granted.take(granted.exchange(granted.code(browser)))
    assert browser.open("/_mahalla/account").status == 200
    password = server.run(
        server.app.accounts.application_passwords.do_create(alice.user_id, "Bot", None, epoch=0)
    )
    server.clock.advance(60)
    assert log_in(server, "alice").errcode == EXPIRED
    assert log_in(server, "alice", password=password).errcode == EXPIRED
    assert log_in(server, "alice", type="m.login.token", token=token).errcode == EXPIRED
    assert program.exchange(code).json["error"] == "invalid_grant"
    # a refresh still works: the client keeps its session for the time after the renewal, and can
    # request the e-mail
    refreshed = server.post(
        "/_matrix/client/v3/refresh", {"refresh_token": refreshable["refresh_token"]}
    )
    for renewed in (granted.refresh(), refreshed):
        assert renewed.status == 200
        assert server.get(WHOAMI, token=renewed.json["access_token"]).errcode == EXPIRED
        assert server.post(SEND_MAIL, token=renewed.json["access_token"]).status == 200
    browser.open("/_mahalla/account")
    assert browser.path.startswith(SIGN_IN)
    browser.send(SIGN_IN, name="alice", password="wonderland")
    assert (browser.status, "The account has expired" in browser.words) == (
        403,
        True,
    )


def test_a_wrong_password_does_not_reveal_the_expiry(server: TestServer) -> None:
    register_expiring(server)
    server.clock.advance(100 * DAY)
    assert log_in(server, "alice", password="wrong").errcode == "M_FORBIDDEN"


def test_the_link_in_the_email_renews_the_account(server: TestServer) -> None:
    alice = register_expiring(server)
    server.clock.advance(89 * DAY)
    assert send_emails(server) == 0
    server.clock.advance(DAY)
    assert send_emails(server) == 1
    assert send_emails(server) == 0  # once
    [(recipient, email)] = server.relay.emails
    assert recipient == "alice@example.org"
    assert email["Subject"] == "Renew your account on example.org"
    assert "2024-02-22" in str(email.get_body(("plain",)))

    server.clock.advance(10 * DAY)
    assert alice.get(WHOAMI).errcode == EXPIRED
    browser = Browser(server)
    browser.open(link_in_email(server))
    assert "Do you want to keep this account?" in browser.words
    assert alice.get(WHOAMI).errcode == EXPIRED  # opening the page renews nothing
    browser.send()
    assert "It is valid until 2024-06-01" in browser.words
    assert alice.get(WHOAMI).status == 200
    server.clock.advance(DAY)
    browser.open(link_in_email(server))
    assert "The account is renewed" in browser.words
    browser.post(browser.path.partition("?")[0], {"token": link_in_email(server).partition("=")[2]})
    assert "It is valid until 2024-06-01" in browser.words  # once
    server.clock.advance(89 * DAY)
    assert send_emails(server) == 1  # about the next expiry


def test_emails_are_in_the_language_of_the_pusher(server: TestServer) -> None:
    alice = register_expiring(server)
    pusher = {
        "kind": "http",
        "app_id": "im.example",
        "pushkey": "key",
        "app_display_name": "App",
        "device_display_name": "Phone",
        "lang": "ru",
        "data": {"url": "https://push.example.org/_matrix/push/v1/notify"},
    }
    assert alice.post("/_matrix/client/v3/pushers/set", pusher).status == 200
    server.clock.advance(95 * DAY)
    assert send_emails(server) == 1
    assert server.relay.emails[0][1]["Content-Language"] == "ru"


def test_a_user_without_email_gets_the_email_once_they_add_an_address(server: TestServer) -> None:
    alice = register_expiring(server, address=False)
    server.clock.advance(95 * DAY)
    assert send_emails(server) == 1
    assert send_emails(server) == 0
    assert server.relay.emails == []
    assert alice.post(SEND_MAIL).errcode == "M_THREEPID_NOT_FOUND"
    row = ThreepidRow("email", "late@example.org", alice.user_id, 1, 1)
    server.run(server.app.database.write("address", server.app.email.threepids.add_threepid, row))
    assert send_emails(server) == 1
    assert [recipient for recipient, _ in server.relay.emails] == ["late@example.org"]


def test_a_user_requests_the_email(server: TestServer) -> None:
    alice = register_expiring(server)
    server.clock.advance(100 * DAY)
    assert alice.post(SEND_MAIL).status == 200
    first = link_in_email(server)
    assert alice.post(SEND_MAIL).status == 200
    assert send_emails(server) == 0
    browser = Browser(server)
    browser.open(first)
    assert (browser.status, "This link no longer works" in browser.words) == (400, True)
    browser.open(link_in_email(server))
    browser.send()
    assert alice.get(WHOAMI).status == 200


@pytest.mark.parametrize(
    "query", ["", "?token=", "?token=%00", "?token=wrong", "?token=" + "x" * 3000]
)
def test_invented_links_are_refused(server: TestServer, query: str) -> None:
    path = "/_matrix/client/unstable/account_validity/renew"
    browser = Browser(server)
    assert browser.open(path + query).status == 400
    assert browser.post(path, {"token": query.removeprefix("?token=")}).status == 400
    assert server.client.request("POST", path, body=b"\xff&&&&&&&&&&&&&").status == 400


def test_administrators_set_expiry_times(server: TestServer) -> None:
    alice, root = register_expiring(server), register_expiring(server, "root")
    server.run(server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
    now = 1_700_000_000_000
    body: dict[str, Any] = {
        "user_id": alice.user_id,
        "expiration_ts": now - 1,
        "enable_renewal_emails": False,
    }
    assert alice.post(ADMIN, body).errcode == "M_FORBIDDEN"
    assert root.post(ADMIN, body).json == {"expiration_ts": now - 1}
    assert alice.get(WHOAMI).errcode == EXPIRED
    assert send_emails(server) == 0
    assert root.post(ADMIN, {"user_id": alice.user_id}).json == {
        "expiration_ts": now + 100 * DAY * 1000
    }
    assert alice.get(WHOAMI).status == 200
    records = root.get(f"/_mahalla/admin/v1/users/{alice.user_id}/audit").json["records"]
    assert [each["by"] for each in records if each["event"] == "renewed"] == [root.user_id] * 2
    for wrong in (
        {},
        {"user_id": 1},
        {**body, "expiration_ts": -1},
        {**body, "expiration_ts": 2**60},
    ):
        assert root.post(ADMIN, wrong).status == 400
    for unknown in ("@nobody:example.org", "@alice:elsewhere.org", "\0", ""):
        assert root.post(ADMIN, {"user_id": unknown}).errcode == "M_NOT_FOUND"


def test_existing_accounts_expire_on_different_days(
    tmp_path: Path, sqlite_database: Database
) -> None:
    before = TestServer(tmp_path, sqlite_database, MAIL)
    users = [before.register(f"person{number}").user_id for number in range(5)]
    later = TestServer(
        tmp_path, sqlite_database, MAIL + VALIDITY, seed=2, now=1_700_000_000 + 30 * DAY
    )
    renewals = later.app.accounts.renewals
    assert [later.run(renewals.do_set_missing_expiries(3)) for _ in range(3)] == [3, 2, 0]
    accounts = later.run(later.app.accounts.stores.accounts.get_accounts(users))
    ends = [
        ((row.expires_ts or 0) / 1000 - later.clock.seconds()) / DAY for row in accounts.values()
    ]
    assert len({round(end) for end in ends}) > 1
    assert all(90 <= end <= 100 for end in ends)


def test_a_server_with_disabled_validity_ignores_stored_expiry_times(
    tmp_path: Path, sqlite_database: Database
) -> None:
    expiring = TestServer(tmp_path, sqlite_database, MAIL + VALIDITY)
    alice = register_expiring(expiring)
    disabled = TestServer(tmp_path, sqlite_database, MAIL, seed=2, now=1_700_000_000 + 200 * DAY)
    assert disabled.get(WHOAMI, token=alice.token).status == 200
    assert log_in(disabled, "alice").status == 200
    assert disabled.run(disabled.app.accounts.renewals.do_set_missing_expiries(10)) == 0
    assert send_emails(disabled) == 0
    assert disabled.post(SEND_MAIL, {}, token=alice.token).errcode == "M_FORBIDDEN"


def test_the_operator_can_set_the_subject(tmp_path: Path, sqlite_database: Database) -> None:
    further = VALIDITY.replace("10d", "10d, renew_email_subject: 'Keep %(app)s 100%'")
    server = TestServer(tmp_path, sqlite_database, MAIL + further)
    register_expiring(server)
    server.clock.advance(95 * DAY)
    assert send_emails(server) == 1
    assert server.relay.emails[0][1]["Subject"] == "Keep Matrix 100%"


def test_the_account_page_shows_the_expiry(server: TestServer) -> None:
    register_expiring(server)
    browser = Browser(server)
    browser.open("/_mahalla/account")
    browser.send(SIGN_IN, name="alice", password="wonderland")
    assert "Your account is valid until 2024-02-22" in browser.words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("account_validity: {enabled: true}", "needs `period`"),
        (
            "account_validity: {enabled: true, period: 10d, renew_at: 10d}",
            "must be less than `period`",
        ),
        ("account_validity: {enabled: true, period: 10d, renew_at: 1d}", "needs `email.smtp_host`"),
    ],
)
def test_inconsistent_options_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "homeserver.yaml"
    path.write_text(f"server_name: example.org\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config([path], {})
