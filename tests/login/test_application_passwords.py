"""Application passwords: created on the account page, usable only for login, revoked with their
sessions."""

import re
from pathlib import Path

import pytest

from federation.protocol.ids import UserID
from storage.engine.database import Database
from tests.helpers.audit_records import audit_records
from tests.helpers.browser import Browser, press
from tests.helpers.keys import cross_signing_key, query
from tests.helpers.logins import log_in, password_auth
from tests.helpers.oauth import CONFIG
from tests.helpers.server import TestServer, User
from tests.oauth.conftest import server

__all__ = ["server"]

PAGE = "/_mahalla/account/application_passwords"
SIGN_IN = "/_mahalla/sign_in"
WHOAMI = "/_matrix/client/v3/account/whoami"
ADMIN = "/_mahalla/admin/v1/users/@alice:example.org/application_passwords"
NO_PASSWORDS = "password_config: {enabled: false}\n"


@pytest.fixture
def browser(server: TestServer) -> Browser:
    browser = Browser(server)
    browser.open(PAGE)
    browser.send(SIGN_IN, name="alice", password="wonderland")
    assert browser.status == 200
    return browser


def make(browser: Browser, name: str = "Bot", days: str = "", password: str = "wonderland") -> str:
    """Create an application password and return it from the page."""
    press(browser, "make", name=name, days=days, old_password=password)
    assert browser.status == 200, browser.words
    [found] = re.findall(r"<code>(mhp_\w+)</code>", browser.text)
    return str(found)


def records(server: TestServer, user_id: str = "@alice:example.org") -> list[str]:
    return [
        each.event
        for each in server.run(server.app.accounts.audit.get_records(UserID(user_id), 50))
    ]


def no_own_password(server: TestServer) -> None:
    store = server.app.accounts.stores.accounts
    server.run(
        server.app.database.write(
            "no_password", store.set_password_hash, "@alice:example.org", None
        )
    )


def test_a_program_signs_in_until_the_password_is_revoked(
    server: TestServer, browser: Browser
) -> None:
    password = make(browser)
    assert ("application_password_made", "Bot") in audit_records(server)
    browser.open(PAGE)
    assert "mhp_" not in browser.text  # shown once
    assert "Bot" in browser.words
    answer = log_in(server, "alice", password, device_id="BOT")
    assert answer.status == 200, answer.body
    bot = User(server, answer.json)
    by_hand = User(server, log_in(server, "alice", "wonderland", device_id="HAND").json)
    assert bot.get(WHOAMI).json["user_id"] == "@alice:example.org"
    browser.open(PAGE)
    assert "Last used 2023-11-14" in browser.words
    press(browser, "end")
    assert "The password was revoked" in browser.words
    assert ("application_password_ended", "Bot") in audit_records(server)
    assert bot.get(WHOAMI).status == 401
    assert by_hand.get(WHOAMI).status == 200
    assert log_in(server, "alice", password).errcode == "M_FORBIDDEN"
    assert "application_password_ended" in records(server)
    press_again = {**browser.page.forms[0].fields, "do": "end", "password_id": "gone"}
    browser.post(PAGE, press_again)
    assert "The password was revoked" in browser.words


def test_an_application_password_only_logs_in(server: TestServer, browser: Browser) -> None:
    password = make(browser)
    bot = User(server, log_in(server, "alice", password).json)
    other = Browser(server)
    other.open(SIGN_IN)
    other.send(SIGN_IN, name="alice", password=password)
    assert (other.status, "The user name or the password is wrong." in other.words) == (403, True)
    path = "/_matrix/client/v3/account/deactivate"
    session = bot.post(path).json["session"]
    auth = {**password_auth("alice", password), "session": session}
    assert bot.post(path, {"auth": auth}).errcode == "M_FORBIDDEN"
    browser.open(PAGE)
    press(browser, "make", name="Another", old_password=password)
    assert (browser.status, "The password is wrong." in browser.words) == (403, True)
    assert server.post("/_matrix/client/v3/keys/query", {}, token=password).status == 401
    server.register("bob")
    assert log_in(server, "bob", password).errcode == "M_FORBIDDEN"


def test_a_later_login_takes_the_device_from_the_application_password(
    server: TestServer, browser: Browser
) -> None:
    password = make(browser)
    assert log_in(server, "alice", password, device_id="D").status == 200
    own = User(server, log_in(server, "alice", "wonderland", device_id="D").json)
    press(browser, "end")
    assert own.get(WHOAMI).status == 200


def test_an_application_password_takes_over_no_device(server: TestServer, browser: Browser) -> None:
    first, second = make(browser), make(browser, "Other")
    own = User(server, log_in(server, "alice", "wonderland", device_id="OWN").json)
    assert log_in(server, "alice", first, device_id="BOT").status == 200
    for password, device_id in ((first, "OWN"), (second, "BOT")):
        refused = log_in(server, "alice", password, device_id=device_id)
        assert (refused.status, refused.errcode) == (403, "M_FORBIDDEN")
    assert own.get(WHOAMI).status == 200
    new_session = User(server, log_in(server, "alice", first, device_id="BOT").json)
    assert new_session.get(WHOAMI).json["device_id"] == "BOT"


def test_a_session_of_an_application_password_signs_in_no_other_client(
    tmp_path: Path, sqlite_database: Database
) -> None:
    tokens = "login_via_existing_session: {enabled: true, require_ui_auth: false}\n"
    server = TestServer(tmp_path, sqlite_database, CONFIG + tokens)
    alice = server.register("alice")
    password = server.run(
        server.app.accounts.application_passwords.do_create(alice.user_id, "Bot", None, epoch=0)
    )
    bot = User(server, log_in(server, "alice", password).json)
    path = "/_matrix/client/v1/login/get_token"
    assert (bot.post(path).status, bot.post(path).errcode) == (403, "M_FORBIDDEN")
    assert alice.post(path).status == 200
    own = User(
        server, log_in(server, "alice", "wonderland", device_id=bot.device_id).json
    )  # the device no longer belongs to the application password
    assert own.post(path).status == 200


def test_a_session_of_an_application_password_sets_no_cross_signing_keys(
    server: TestServer, browser: Browser
) -> None:
    bot = User(server, log_in(server, "alice", make(browser)).json)
    own = User(server, log_in(server, "alice", "wonderland").json)
    keys = {"master_key": cross_signing_key(bot, "master", 7)[1]}
    refused = bot.post("/_matrix/client/v3/keys/device_signing/upload", keys)
    assert (refused.status, refused.errcode) == (403, "M_FORBIDDEN")
    assert query(own, own).get("master_keys", {}) == {}
    for user in (own, bot):  # uploading the same keys again changes nothing
        assert user.post("/_matrix/client/v3/keys/device_signing/upload", keys).status == 200


def test_application_passwords_expire(server: TestServer, browser: Browser) -> None:
    password = make(browser, days="30")
    bot = User(server, log_in(server, "alice", password).json)
    assert "Expires 2023-12-14" in browser.words
    server.clock.advance(30 * 24 * 3600)
    assert log_in(server, "alice", password).errcode == "M_FORBIDDEN"
    assert server.run(server.app.accounts.application_passwords.do_sweep(10)) == 1
    assert bot.get(WHOAMI).status == 401
    assert server.run(server.app.accounts.application_passwords.do_sweep(10)) == 0


def test_the_configuration_bounds_application_passwords(
    tmp_path: Path, sqlite_database: Database
) -> None:
    bounds = "application_passwords: {limit: 2, max_lifetime: 90d}\n"
    server = TestServer(tmp_path, sqlite_database, CONFIG + bounds)
    server.register("alice")
    browser = Browser(server)
    browser.open(PAGE)
    browser.send(SIGN_IN, name="alice", password="wonderland")
    make(browser, "One")
    assert "Expires 2024-02-12" in browser.words
    press(browser, "make", name="One", old_password="wonderland")
    assert (browser.status, "You already have a password with this name" in browser.words) == (
        400,
        True,
    )
    make(browser, "Two", days="30")
    press(browser, "make", name="Three", old_password="wonderland")
    assert (browser.status, "maximum number of application passwords" in browser.words) == (
        403,
        True,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": "a\x1bb"},
        {"days": "0"},
        {"days": "-1"},
        {"days": "1e9"},
    ],
)
def test_invalid_names_and_lifetimes_are_refused(
    server: TestServer, browser: Browser, fields: dict[str, str]
) -> None:
    press(browser, "make", **{"name": "Bot", "old_password": "wonderland", **fields})
    assert browser.status == 400
    passwords = server.app.accounts.application_passwords
    assert server.run(passwords.get_passwords(UserID("@alice:example.org"))) == []


def test_forms_of_other_sites_create_no_password(server: TestServer, browser: Browser) -> None:
    assert (
        browser.post(PAGE, {"do": "make", "name": "Bot", "old_password": "wonderland"}).status
        == 403
    )
    assert Browser(server).open(PAGE).status == 200  # the sign-in page


def test_a_user_without_a_password_needs_a_recent_sign_in(
    server: TestServer, browser: Browser
) -> None:
    no_own_password(server)
    browser.open(PAGE)
    assert "Your password" not in browser.words
    password = make(browser)
    assert log_in(server, "alice", password).status == 200
    server.clock.advance(16 * 60)
    press(browser, "make", name="Second")
    assert browser.path.startswith(SIGN_IN)


def test_application_passwords_work_without_local_passwords(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, CONFIG)
    server.register("alice")
    passwords = server.app.accounts.application_passwords
    password = server.run(passwords.do_create(UserID("@alice:example.org"), "Bot", None, epoch=0))

    closed = TestServer(tmp_path, sqlite_database, CONFIG + NO_PASSWORDS, seed=2)
    assert closed.get("/_matrix/client/v3/login").errcode == "M_UNRECOGNIZED"
    assert log_in(closed, "alice", password).status == 200
    assert log_in(closed, "alice", "wonderland").errcode == "M_FORBIDDEN"

    options = "application_passwords: {in_login_flows: true}\n"
    naming = TestServer(tmp_path, sqlite_database, CONFIG + NO_PASSWORDS + options, seed=3)
    assert naming.get("/_matrix/client/v3/login").json["flows"] == [{"type": "m.login.password"}]

    off = "application_passwords: {enabled: false, in_login_flows: true}\n"
    without = TestServer(tmp_path, sqlite_database, CONFIG + NO_PASSWORDS + off, seed=4)
    assert without.get("/_matrix/client/v3/login").errcode == "M_UNRECOGNIZED"
    assert log_in(without, "alice", password).status == 403
    assert Browser(without).open(PAGE).status == 404
    off_here = TestServer(tmp_path, sqlite_database, CONFIG + off, seed=5)
    assert log_in(off_here, "alice", password).errcode == "M_FORBIDDEN"
    assert log_in(off_here, "alice", "wonderland").status == 200


def test_failed_logins_are_rate_limited(tmp_path: Path, sqlite_database: Database) -> None:
    limits = "rc_login: {failed_attempts: {per_second: 0.01, burst_count: 2}}\n"
    server = TestServer(tmp_path, sqlite_database, CONFIG + limits)
    server.register("alice")
    passwords = server.app.accounts.application_passwords
    right = server.run(passwords.do_create(UserID("@alice:example.org"), "Bot", None, epoch=0))
    wrong = server.app.accounts.secret_text.application_password()
    assert [log_in(server, "alice", wrong).status for _ in range(3)] == [403, 403, 429]
    assert log_in(server, "alice", right).status == 429
    assert records(server).count("sign_in_failed") == 2


def test_logging_out_everywhere_revokes_them_and_a_lock_does_not(
    server: TestServer, browser: Browser
) -> None:
    password = make(browser)
    accounts = server.app.user_data.accounts
    server.run(accounts.do_set_flags(UserID("@alice:example.org"), locked=True))
    assert log_in(server, "alice", password).errcode == "M_USER_LOCKED"
    server.run(accounts.do_set_flags(UserID("@alice:example.org"), locked=False))
    bot = User(server, log_in(server, "alice", password).json)
    assert bot.post("/_matrix/client/v3/logout/all").status == 200
    assert log_in(server, "alice", password).errcode == "M_FORBIDDEN"
    assert "application_password_ended" in records(server)


def test_the_account_data_lists_them_without_secrets(browser: Browser) -> None:
    make(browser)
    [kept] = browser.open("/_mahalla/account/export").json["application_passwords"]
    assert kept == {
        "name": "Bot",
        "created_ts": 1_700_000_000_000,
        "expires_ts": None,
        "last_used_ts": None,
    }


def test_administrators_list_and_revoke_them(server: TestServer, browser: Browser) -> None:
    password = make(browser)
    bot = User(server, log_in(server, "alice", password).json)
    root = server.register("root")
    server.run(server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
    [found] = root.get(ADMIN).json["application_passwords"]
    assert found == {
        "id": password[4:16],
        "name": "Bot",
        "created_ts": 1_700_000_000_000,
        "expires_ts": None,
        "last_used_ts": 1_700_000_000_000,
    }
    assert bot.delete(f"{ADMIN}/{found['id']}").errcode == "M_FORBIDDEN"
    assert root.delete(f"{ADMIN}/{found['id']}").status == 200
    assert bot.get(WHOAMI).status == 401
    assert root.delete(f"{ADMIN}/{found['id']}").errcode == "M_NOT_FOUND"
