"""The login fallback page, for clients that support none of the server's login types."""

import json
import re
from pathlib import Path
from typing import Any

from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.openid import CONFIG, TEMPLATES, OpenIDProvider
from tests.helpers.server import TestServer, User
from tests.helpers.upstream import ALICE

PAGE = "/_matrix/static/client/login/"
WHOAMI = "/_matrix/client/v3/account/whoami"


def passed_response(browser: Browser) -> dict[str, Any]:
    """Return the login response that the page passes to the client."""
    assert browser.status == 200, browser.words
    [answer] = re.findall(r"window\.matrixLogin\.onLogin\((\{.*\})\);", browser.text)
    found: dict[str, Any] = json.loads(answer)
    return found


def test_the_page_signs_in_with_a_password(server: TestServer) -> None:
    server.register("alice")
    browser = Browser(server)
    browser.open(f"{PAGE}?device_id=PHONE&initial_device_display_name=%3C/script%3E%22&evil=1")
    assert "evil" not in browser.text
    browser.send(name="alice", password="wrong")
    assert (browser.status, "The user name or the password is wrong." in browser.words) == (
        403,
        True,
    )
    browser.send(name="Alice", password="wonderland")
    session = passed_response(browser)
    assert (session["user_id"], session["device_id"]) == ("@alice:example.org", "PHONE")
    assert browser.answer.headers["cache-control"] == "no-store"
    assert "script-src 'sha256-" in browser.answer.headers["content-security-policy"]
    alice = User(server, session)
    assert alice.get("/_matrix/client/v3/devices/PHONE").json["display_name"] == '</script>"'


def test_forms_of_other_sites_are_refused(server: TestServer) -> None:
    server.register("alice")
    browser = Browser(server)
    assert browser.post(PAGE, {"name": "alice", "password": "wonderland"}).status == 403


def test_an_overlong_device_id_is_refused(server: TestServer) -> None:
    server.register("alice")
    browser = Browser(server)
    browser.open(f"{PAGE}?device_id={'x' * 2000}")
    browser.send(name="alice", password="wonderland")
    assert (browser.status, "onLogin" in browser.text) == (400, False)


def test_the_page_signs_in_with_an_identity_provider(
    tmp_path: Path, sqlite_database: Database
) -> None:
    provider = OpenIDProvider()
    server = TestServer(tmp_path, sqlite_database, CONFIG + TEMPLATES, web=provider)
    browser = Browser(server)
    browser.open(f"{PAGE}?device_id=PHONE")
    browser.follow("Town hall")
    browser.open(provider.sign_in(browser.location, **ALICE))
    assert "matrix.example.org" in browser.words  # the page names the target
    browser.send()
    back = browser.location
    assert back.startswith(f"https://matrix.example.org{PAGE}?device_id=PHONE&loginToken=")
    browser.open(back.removeprefix("https://matrix.example.org"))
    assert "onLogin" not in browser.text  # opening the URL alone signs nobody in
    token = browser.page.forms[0].fields["login_token"]
    browser.send()
    session = passed_response(browser)
    assert (session["user_id"], session["device_id"]) == ("@alice:example.org", "PHONE")
    assert server.get(WHOAMI, token=session["access_token"]).status == 200
    browser.open(f"{PAGE}?loginToken={token}")
    browser.send()
    assert (browser.status, "onLogin" in browser.text) == (403, False)  # the token is used


def test_the_page_says_that_no_sign_in_is_enabled(
    tmp_path: Path, sqlite_database: Database
) -> None:
    closed = "password_config: {enabled: false}\napplication_passwords: {enabled: false}\n"
    server = TestServer(tmp_path, sqlite_database, closed)
    browser = Browser(server)
    browser.open(PAGE)
    assert "Sign-in is not available on this page" in browser.words
