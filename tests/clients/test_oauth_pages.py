"""The pages of the server in a real browser, and matrix-js-sdk that sends people to them.

One server and one browser (Debian's Chromium) for the file. axe looks at each page for what people with a screen reader or a
keyboard would stumble over. With the environment variable `MAHALLA_SCREENSHOTS`, a folder gets a picture of each page.
"""

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope
from playwright.sync_api import Browser, Page, sync_playwright

from storage.database import SQLiteConfig
from tests.clients.test_js_sdk import MODULES, NODE
from tests.helpers.real_server import RealServer, running_server

SCRIPT = Path(__file__).parent / "js" / "oauth.mjs"
AXE = MODULES / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium")
APP = "https://app.example.com/"
SECONDS = 60
WHOAMI = "/_matrix/client/v3/account/whoami"


class Letters:
    """A mail server on this machine."""

    def __init__(self) -> None:
        self.links: list[str] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        letter = message_from_bytes(envelope.original_content or b"", policy=default)
        assert isinstance(letter, EmailMessage)
        text = letter.get_body(("plain",))
        assert text is not None
        self.links += re.findall(r"http://127\.0\.0\.1:\S+", text.get_content())
        return "250 taken"


@pytest.fixture(scope="module")
def letters() -> Iterator[tuple[Letters, int]]:
    found = Letters()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    controller = Controller(found, hostname="127.0.0.1", port=port)
    controller.start()
    yield found, port
    controller.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, letters: tuple[Letters, int]) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server")
    mail = {"smtp_host": "127.0.0.1", "smtp_port": letters[1], "notif_from": "server@example.org"}
    unlimited = {"per_second": 1000, "burst_count": 1000}
    configuration = {"email": mail, "rc_3pid_validation": unlimited}
    database = SQLiteConfig(str(folder / "homeserver.db"))
    with running_server(folder, database, baseurl=True, configuration=configuration) as server:
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    assert CHROMIUM is not None, "Chromium is missing: run scripts/browser, which installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """Somebody with a browser, in a language."""

    def __init__(self, browser: Browser, server: RealServer, locale: str, **options: Any) -> None:
        self.url = server.url
        self.locale = locale
        self._context = browser.new_context(locale=locale, **options)
        self.page = self._new_page()
        self._pictures = 0

    def _new_page(self) -> Page:
        page = self._context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.on("console", self._hear)
        return page

    def _hear(self, message: Any) -> None:
        assert "Content Security Policy" not in message.text, message.text

    def open(self, path: str) -> None:
        self.page.goto(path if "://" in path else self.url + path)

    def look(self) -> None:
        """Let axe look at the page."""
        folder = os.environ.get("MAHALLA_SCREENSHOTS")
        if folder:
            self._pictures += 1
            self.page.screenshot(path=f"{folder}/{self.locale}-{self._pictures:02}.png", full_page=True)
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run()")
        faults = [
            (fault["id"], fault["help"], [node["html"] for node in fault["nodes"]])
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
        assert faults == [], f"{self.page.url}: {faults}"

    def fill(self, button: str = "form.fields button", **fields: str) -> None:
        """Look at the page, fill in a form, and send it with the keyboard."""
        self.look()
        for name, value in fields.items():
            self.page.fill(f"form.fields [name={name}]:not([type=hidden])", value)
        self.page.focus(button)
        with self.page.expect_navigation():
            self.page.keyboard.press("Enter")

    def decide(self, decision: str) -> None:
        self.look()
        self.press(f"button[value={decision}]")

    def go_back_to_app(self) -> str:
        """Allow what an app asks; where the browser goes then. There is no app on this machine, so the page is left, which
        would still be turning into one that says so."""
        self.look()
        with self.page.expect_request(f"{APP}**") as asked:
            self.page.click("button[value=allow]")
        sent = asked.value.redirected_from
        response = None if sent is None else sent.response()
        assert response is not None
        location: str = response.headers["location"]
        self.page.close()
        self.page = self._new_page()
        return location

    def press(self, what: str) -> None:
        """Press a button or a link, and wait for what it leads to."""
        with self.page.expect_navigation():
            self.page.click(what)


def post(url: str, body: bytes, kind: str = "application/json") -> Any:
    with urlopen(Request(url, body, {"Content-Type": kind}), timeout=SECONDS) as answer:
        return json.load(answer)


def test_an_app_of_the_web_signs_somebody_in(chromium: Browser, served: RealServer) -> None:
    assert NODE.exists(), f"matrix-js-sdk is not in {MODULES}: run scripts/node_packages, which installs it"
    alice = Visitor(chromium, served, "en-GB")
    script = subprocess.Popen(
        [str(NODE), str(SCRIPT), served.url], cwd=MODULES, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert script.stdin is not None
    assert script.stdout is not None
    try:
        alice.open(script.stdout.readline().strip())
        alice.look()
        alice.press("a[href*=without_address]")
        alice.fill(name="alice", password="wonderland", password_again="looking glass")
        assert alice.page.locator("[role=alert]").is_visible()
        alice.fill(name="alice", password="wonderland", password_again="wonderland")
        assert "Let Element use your account?" in alice.page.inner_text("h1")
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
    assert "Your name is changed." in alice.page.inner_text("[role=status]")
    alice.look()


def test_somebody_with_a_telephone_in_uzbek(
    chromium: Browser, served: RealServer, letters: tuple[Letters, int]
) -> None:
    body = {"username": "bob", "password": "builder", "auth": {"type": "m.login.dummy"}}
    session = post(f"{served.url}/_matrix/client/v3/register", json.dumps(body).encode())
    size = {"width": 360, "height": 740}
    bob = Visitor(chromium, served, "uz", viewport=size, color_scheme="dark", is_mobile=True)
    bob.open("/_mahalla/account")
    bob.fill(name="bob", password="wrong")
    assert "Nom yoki parol noto‘g‘ri." in bob.page.inner_text("[role=alert]")
    bob.fill(name="bob", password="builder")
    assert bob.page.inner_text("h1") == "Hisobingiz"
    bob.look()

    # a session is ended
    bob.press(f"a[href*={session['device_id']}]")
    bob.look()
    bob.press("button.danger")
    assert "Seans tugatildi." in bob.page.inner_text("[role=status]")
    with pytest.raises(OSError, match="401"):
        urlopen(Request(served.url + WHOAMI, headers={"Authorization": f"Bearer {session['access_token']}"}))

    # an address is added, and the password is forgotten
    bob.page.fill("#address", "bob@example.org")
    bob.press("form:has(#address) button")
    bob.look()
    _confirm(bob, letters[0], 1)
    bob.fill(old_password="builder")
    assert "bob@example.org" in bob.page.inner_text("main")
    bob.page.context.clear_cookies()
    bob.open("/_mahalla/sign_in")
    bob.press("a[href$=reset_password]")
    bob.fill(address="bob@example.org")
    _confirm(bob, letters[0], 2)
    bob.fill(password="the builder", password_again="the builder")
    bob.look()
    bob.press("a.button")
    bob.fill(name="bob@example.org", password="the builder")

    # a device without a browser is not let in
    metadata = {"client_uri": "https://tv.example/", "grant_types": ["urn:ietf:params:oauth:grant-type:device_code"]}
    client_id = post(f"{served.url}/_mahalla/oauth/register", json.dumps(metadata).encode())["client_id"]
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
        bob.look()


def _confirm(visitor: Visitor, letters: Letters, number: int) -> None:
    """Open the link of a letter, press its button, and go on from there."""
    for _ in range(100):
        if len(letters.links) >= number:
            break
        visitor.page.wait_for_timeout(100)
    visitor.open(letters.links[number - 1])
    visitor.look()
    visitor.press("form button")
    visitor.press("a.button")
