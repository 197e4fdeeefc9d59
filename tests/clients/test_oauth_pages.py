"""The server's pages in a real browser, together with matrix-js-sdk.

One server and one browser for the file; see `tests/helpers/real_browser.py`.
"""

import json
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser

from storage.engine.database import SQLiteConfig
from tests.helpers.js_scripts import MODULES, script_command
from tests.helpers.real_browser import SECONDS, BrowserUser, EmailLinks, confirm_address
from tests.helpers.real_server import RealServer, running_server

WHOAMI = "/_matrix/client/v3/account/whoami"


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, email_links: tuple[EmailLinks, int]
) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server")
    mail = {
        "smtp_host": "127.0.0.1",
        "smtp_port": email_links[1],
        "notif_from": "server@example.org",
    }
    unlimited = {"per_second": 1000, "burst_count": 1000}
    configuration = {"email": mail, "rc_3pid_validation": unlimited}
    database = SQLiteConfig(str(folder / "homeserver.db"))
    with running_server(folder, database, baseurl=True, configuration=configuration) as server:
        yield server


def post(url: str, body: bytes, kind: str = "application/json") -> Any:
    with urlopen(Request(url, body, {"Content-Type": kind}), timeout=SECONDS) as answer:
        return json.load(answer)


def test_a_web_client_signs_a_user_in(chromium: Browser, served: RealServer) -> None:
    alice = BrowserUser(chromium, served, "en-GB")
    script = subprocess.Popen(
        script_command("oauth.mjs", served.url),
        cwd=MODULES,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert script.stdin is not None
    assert script.stdout is not None
    try:
        alice.open(script.stdout.readline().strip())
        alice.check_page()
        alice.press("a[href*=without_address]")
        alice.fill(name="alice", password="wonderland", password_again="looking glass")
        assert alice.page.locator("[role=alert]").is_visible()
        alice.fill(name="alice", password="wonderland", password_again="wonderland")
        assert "Allow Element to use your account?" in alice.page.inner_text("h1")
        script.stdin.write(alice.go_back_to_app() + "\n")
        script.stdin.flush()
        alice.open(script.stdout.readline().strip())
        alice.decide("allow")
        assert "The device is signed in" in alice.page.inner_text("h1")
        assert json.loads(script.stdout.readline()) == {"user_id": "@alice:localhost"}
        assert script.wait(SECONDS) == 0
    finally:
        script.kill()
        script.wait()
    alice.open("/_mahalla/account")
    alice.page.fill("#display_name", "Alice in Wonderland")
    alice.press("section:has(#display_name) button")
    assert "Your name was changed." in alice.page.inner_text("[role=status]")
    alice.check_page()


def test_the_pages_fit_a_phone_in_uzbek(
    chromium: Browser, served: RealServer, email_links: tuple[EmailLinks, int]
) -> None:
    body = {"username": "bob", "password": "bob the builder", "auth": {"type": "m.login.dummy"}}
    session = post(f"{served.url}/_matrix/client/v3/register", json.dumps(body).encode())
    size = {"width": 360, "height": 740}
    bob = BrowserUser(chromium, served, "uz", viewport=size, color_scheme="dark", is_mobile=True)
    bob.open("/_mahalla/account")
    bob.fill(name="bob", password="wrong")
    assert "Nom yoki parol noto‘g‘ri." in bob.page.inner_text("[role=alert]")
    bob.fill(name="bob", password="bob the builder")
    assert bob.page.inner_text("h1") == "Hisobingiz"
    bob.check_page()

    # end a session
    bob.press(f"a[href*={session['device_id']}]")
    bob.check_page()
    bob.press("button.danger")
    assert "Seans tugatildi." in bob.page.inner_text("[role=status]")
    with pytest.raises(OSError, match="401"):
        urlopen(
            Request(
                served.url + WHOAMI, headers={"Authorization": f"Bearer {session['access_token']}"}
            )
        )

    # add an address, and reset a forgotten password
    bob.page.fill("#address", "bob@example.org")
    bob.press("form:has(#address) button")
    bob.check_page()
    confirm_address(bob, email_links[0], 1)
    bob.fill(old_password="bob the builder")
    assert "bob@example.org" in bob.page.inner_text("main")
    bob.page.context.clear_cookies()
    bob.open("/_mahalla/sign_in")
    bob.press("a[href$=reset_password]")
    bob.fill(address="bob@example.org")
    confirm_address(bob, email_links[0], 2)
    bob.fill(password="the builder", password_again="the builder")
    bob.check_page()
    bob.press("a.button")
    bob.fill(name="bob@example.org", password="the builder")

    # deny a device without a browser
    metadata = {
        "client_uri": "https://tv.example/",
        "grant_types": ["urn:ietf:params:oauth:grant-type:device_code"],
    }
    client_id = post(f"{served.url}/_mahalla/oauth/register", json.dumps(metadata).encode())[
        "client_id"
    ]
    scope = "urn:matrix:client:api:* urn:matrix:client:device:TELEVISION"
    form = urlencode({"client_id": client_id, "scope": scope}).encode()
    asked = post(f"{served.url}/_mahalla/oauth/device", form, "application/x-www-form-urlencoded")
    bob.open("/_mahalla/link")
    bob.fill(user_code=asked["user_code"].lower())
    assert "tv.example" in bob.page.inner_text("main")
    bob.decide("deny")
    assert bob.page.inner_text("h1") == "Qurilmaga ruxsat berilmadi"
    for action in ("org.matrix.cross_signing_reset", "org.matrix.account_deactivate"):
        bob.open(f"/_mahalla/account?action={action}")
        bob.check_page()
