"""SSO on this server's own pages for clients of the older API, re-authentication, and ending all
other sessions."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.logins import password_auth
from tests.helpers.oauth import CONFIG, Program
from tests.helpers.server import TestServer, User
from tests.oauth.conftest import browser, program, server

__all__ = ["browser", "program", "server"]

REDIRECT = "/_matrix/client/v3/login/sso/redirect"
SIGN_IN = "/_mahalla/sign_in"
APP = "https://app.example.com/done?a=1"
WHOAMI = "/_matrix/client/v3/account/whoami"


def start_sso(browser: Browser, query: str = f"redirectUrl={APP}") -> None:
    """Open the SSO redirect as a client does."""
    answer = browser.open(f"{REDIRECT}?{query}")
    assert answer.status == 302, browser.words
    browser.open(browser.location)


def redeem(server: TestServer, browser: Browser) -> User:
    assert browser.status == 303
    token = parse_qs(urlsplit(browser.location).query)["loginToken"][0]
    answer = server.post("/_matrix/client/v3/login", {"type": "m.login.token", "token": token})
    assert answer.status == 200, answer.body
    return User(server, answer.json)


def test_the_login_flows_offer_sso(server: TestServer) -> None:
    flows = server.get("/_matrix/client/v3/login").json["flows"]
    assert {
        "type": "m.login.sso",
        "oauth_aware_preferred": True,
        "org.matrix.msc3824.delegated_oidc_compatibility": True,
    } in flows
    assert {"type": "m.login.token"} in flows
    assert {"type": "m.login.password"} in flows


def test_a_client_of_the_older_api_signs_in(server: TestServer, browser: Browser) -> None:
    start_sso(browser, f"redirectUrl={APP}&action=login")
    assert browser.path.startswith(SIGN_IN)
    browser.send(SIGN_IN, name="alice", password="wonderland")
    assert "Continue to app.example.com?" in browser.words
    assert "@alice:example.org" in browser.words
    assert "form-action 'self' https:;" in browser.answer.headers["content-security-policy"]
    browser.send("/_mahalla/sso")
    assert re.fullmatch(r"https://app\.example\.com/done\?a=1&loginToken=\w+", browser.location)
    assert redeem(server, browser).user_id == "@alice:example.org"
    # the token is used once
    token = parse_qs(urlsplit(browser.location).query)["loginToken"][0]
    assert (
        server.post("/_matrix/client/v3/login", {"type": "m.login.token", "token": token}).status
        == 403
    )


@pytest.mark.parametrize("name", ["action", "org.matrix.msc3824.action"])
def test_a_client_of_the_older_api_registers(
    server: TestServer, browser: Browser, name: str
) -> None:
    start_sso(browser, f"redirectUrl={APP}&{name}=register")
    assert browser.path.startswith("/_mahalla/register")
    browser.send(
        "/_mahalla/register", name="bob", password="wonderland", password_again="wonderland"
    )
    assert "Continue to app.example.com?" in browser.words
    browser.send("/_mahalla/sso")
    assert redeem(server, browser).user_id == "@bob:example.org"


def test_a_token_is_sent_only_after_consent_or_to_listed_clients(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(
        tmp_path, sqlite_database, CONFIG + "sso: {client_whitelist: ['https://known.example/']}\n"
    )
    server.register("alice")
    browser = Browser(server)
    start_sso(browser, "redirectUrl=https://known.example.evil/")
    browser.send(SIGN_IN, name="alice", password="wonderland")
    assert browser.status == 200
    assert "known.example.evil" in browser.words
    start_sso(browser, "redirectUrl=https://known.example/app")
    assert browser.status == 200
    where = browser.page.links["Continue"]
    assert re.fullmatch(r"https://known\.example/app\?loginToken=\w+", where)
    assert browser.answer.headers["refresh"] == f"0;url={where}"
    token = where.partition("loginToken=")[2]
    assert (
        server.post("/_matrix/client/v3/login", {"type": "m.login.token", "token": token}).status
        == 200
    )
    for wrong in ("javascript:alert(1)", "https://me@app.example/", ""):
        assert browser.open(f"{REDIRECT}?redirectUrl={wrong}").status == 400
        assert browser.open(f"/_mahalla/sso?redirectUrl={wrong}").status == 400
    browser.post("/_mahalla/sso", {"redirectUrl": APP})  # a form of another site
    assert browser.status == 403


def test_sso_is_not_offered_without_the_pages(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, CONFIG + "oauth: {enabled: false}\n")
    flows = server.get("/_matrix/client/v3/login").json["flows"]
    assert [flow["type"] for flow in flows] == ["m.login.password"]
    assert Browser(server).open(f"{REDIRECT}?redirectUrl={APP}").status == 404


def test_prompt_login_requires_a_new_sign_in(program: Program, browser: Browser) -> None:
    program.sign_in(browser)
    browser.open(program.request(prompt="login", login_hint="mxid:@alice:example.org"))
    assert browser.path.startswith(SIGN_IN)
    assert browser.page.forms[0].fields["name"] == "@alice:example.org"
    browser.send(SIGN_IN, name="alice", password="wrong")
    assert browser.status == 403
    browser.send(SIGN_IN, name="alice", password="wonderland")
    assert browser.path.startswith("/_mahalla/oauth/authorize?")
    assert "prompt" not in browser.path
    assert "Allow Element X to use your account?" in browser.words
    browser.open(program.request(prompt="create"))
    assert browser.path.startswith("/_mahalla/register")
    browser.open(program.request())
    assert "Allow Element X to use your account?" in browser.words


def test_a_user_ends_all_other_sessions_by_sso(
    server: TestServer, program: Program, browser: Browser
) -> None:
    app = program.sign_in(browser)
    other_app = server.register("bob")
    older = server.post(
        "/_matrix/client/v3/login",
        password_auth("alice"),
    )
    alice = User(server, older.json)
    other = Browser(server)
    other.open("/_mahalla/account")
    other.send(SIGN_IN, name="alice", password="wonderland")
    browser.open("/_mahalla/account")
    form = next(form for form in browser.page.forms if form.fields.get("do") == "end_others")
    browser.post(form.action, {**form.fields, "form_token": "x"})
    assert alice.get(WHOAMI).status == 200
    browser.post(form.action, form.fields)
    assert "All other sessions have ended." in browser.words
    assert "You are not signed in with any app." in browser.words
    assert [each.get(WHOAMI).status for each in (app, alice)] == [401, 401]
    assert program.refresh().json["error"] == "invalid_grant"
    other.open("/_mahalla/account")
    assert other.path.startswith(SIGN_IN)
    browser.open("/_mahalla/account")
    assert browser.path == "/_mahalla/account"
    assert other_app.get(WHOAMI).status == 200
