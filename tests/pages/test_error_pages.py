"""Errors are pages in the user's language for browsers, and JSON for other clients."""

from pathlib import Path

import pytest

from homeserver.services.pages.languages import Languages
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.oauth import CONFIG, Program
from tests.helpers.server import TestServer

LANGUAGES = Languages()
CODES = ("uz", "uz-Cyrl", "ru", "kaa")
HTML = {"Accept": "text/html,*/*;q=0.8"}


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(
        tmp_path,
        sqlite_database,
        CONFIG
        + "rc_login: {address: {per_second: 0.1, burst_count: 2}}\nenable_registration: true\n",
    )


def says(browser: Browser, text: str) -> bool:
    """Return whether the page has the text, translated to the browser's language."""
    assert browser.answer.headers["content-type"].startswith("text/html"), browser.text
    translated = LANGUAGES.choose(browser.languages).gettext(text)
    assert translated != text
    return translated.partition("%")[0] in browser.words


@pytest.mark.parametrize("code", CODES)
def test_unknown_paths_are_a_page(server: TestServer, code: str) -> None:
    browser = Browser(server, languages=code)
    for path in ("/_mahalla/nothing", "/_synapse/client/nothing", "/_matrix/static/nothing"):
        browser.open(path)
        assert browser.status == 404
        assert says(browser, "This page does not exist.")
    browser.post("/_mahalla/logo", {})
    assert (browser.status, browser.answer.headers["allow"]) == (405, "GET, OPTIONS")
    browser.open("/_mahalla/sign_in?again=x")
    assert browser.status == 400
    assert says(browser, "The request is not valid.")
    browser.post("/_mahalla/sign_in", {"name": "x" * 20000})
    assert browser.status == 413
    assert says(browser, "The request is not valid.")


@pytest.mark.parametrize("code", CODES)
def test_a_rate_limit_is_a_page(server: TestServer, code: str) -> None:
    browser = Browser(server, languages=code)
    for _ in range(9):
        browser.open("/_mahalla/sign_in")
        browser.send("/_mahalla/sign_in", name="nobody", password="x")
    assert browser.status == 429
    assert browser.answer.headers["retry-after"]
    assert says(browser, "Too many attempts. Try again in %(minutes)s min.")


def test_an_internal_error_is_a_page_with_its_id(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.app.pages.sessions, "get", fail)
    browser = Browser(server, languages="ru")
    browser.open("/_mahalla/account")
    assert browser.status == 500
    assert says(
        browser,
        "Something went wrong on this server. To report the problem to its administrators,"
        " give them this number: %(id)s",
    )
    assert server.get("/_mahalla/account").json["errcode"] == "M_UNKNOWN"


def test_other_clients_get_json(server: TestServer) -> None:
    assert server.get("/_mahalla/nothing").errcode == "M_UNRECOGNIZED"
    for path in (
        "/_mahalla/admin/v1/nothing",
        "/_mahalla/oauth/nothing",
        "/_matrix/client/v3/nothing",
    ):
        assert server.get(path, headers=HTML).errcode == "M_UNRECOGNIZED"


@pytest.mark.parametrize("code", CODES)
def test_invalid_input_is_explained(server: TestServer, code: str) -> None:
    browser = Browser(server, languages=code)
    browser.open("/_mahalla/register")
    browser.send("/_mahalla/register", name="alice", password="x" * 600, password_again="x" * 600)
    assert says(browser, "A password must have 1 to %(count)s characters.")
    program = Program(server)
    for changed, text in (
        (
            {"client_id": "unknown"},
            "This server does not know the app. Return to the app and sign in again.",
        ),
        (
            {"redirect_uri": "https://evil.example/"},
            "The app uses a return address that it did not register here.",
        ),
    ):
        browser.open(program.request(**changed))
        assert says(browser, text)
        assert says(browser, "For the developers of the app: %(text)s")


def test_pages_send_no_cors_headers(server: TestServer) -> None:
    """spec: RFC 9700 section 2.6"""
    program = Program(server)
    for path in (
        program.request(),
        program.request(scope=""),
        "/_mahalla/sign_in",
        "/_mahalla/account",
        "/_mahalla/nothing",
    ):
        assert "access-control-allow-origin" not in server.get(path).headers
        preflight = server.client.request("OPTIONS", path)
        assert (
            preflight.status,
            [name for name in preflight.headers if name.startswith("access-control")],
        ) == (204, [])
    for endpoint in (
        "token_endpoint",
        "revocation_endpoint",
        "registration_endpoint",
        "device_authorization_endpoint",
    ):
        preflight = server.client.request("OPTIONS", program.path_of(endpoint))
        assert preflight.headers["access-control-allow-origin"] == "*"
        assert program.form(endpoint).headers["access-control-allow-origin"] == "*"
    for path in (
        "/_matrix/client/v3/login/sso/redirect",
        "/_matrix/client/versions",
        "/_mahalla/confirm_number",
    ):
        assert server.client.request("OPTIONS", path).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("code", CODES)
def test_invalid_addresses_and_tokens_are_explained(
    tmp_path: Path, sqlite_database: Database, code: str
) -> None:
    further = (
        "email: {smtp_host: mail.example.org}\nenable_registration: true\n"
        "registration_requires_token: true\n"
    )
    browser = Browser(TestServer(tmp_path, sqlite_database, CONFIG + further), languages=code)
    browser.open("/_mahalla/reset_password")
    browser.send("/_mahalla/reset_password", address="\u00e9@b.org")
    assert says(browser, "This is not a valid e-mail address.")
    browser.open("/_mahalla/register?without_address=true")
    given = {
        "name": "alice",
        "password": "wonderland",
        "password_again": "wonderland",
        "registration_token": "bogus",
    }
    browser.send("/_mahalla/register", **given)
    assert says(browser, "This registration token is not valid.")
