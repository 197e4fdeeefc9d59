"""Sign-in and confirmation with providers of another site, in Debian's Chromium.

The server is a process at 127.0.0.1. The providers are at `localhost`, which is another site for
browsers, so this tests cookies, forms and policies. The environment variable `MAHALLA_SCREENSHOTS`
names a folder for a screenshot of each page.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest
import yaml
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from storage.engine.database import SQLiteConfig
from tests.helpers.identity_providers import HAS_CAS, HAS_SAML, NO_CAS, NO_NPM, start_cas, start_npm
from tests.helpers.ports import free_port
from tests.helpers.server_process import RunningServer, ServerFiles
from tests.helpers.slapd import Slapd, config_of

CHROMIUM = shutil.which("chromium")
NO_BROWSER = (
    "NO REAL BROWSER SIGNED IN: Debian's chromium is not installed here."
    " scripts/browser installs it"
)
V3 = "/_matrix/client/v3"
MILLISECONDS = 60_000


@dataclass(frozen=True)
class Served:
    """The server, and the URL of a client, which the providers' process serves."""

    server: RunningServer
    app: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, slapd: Slapd) -> Iterator[Served]:
    if not HAS_SAML:
        pytest.skip(NO_NPM)
    if not HAS_CAS:
        pytest.skip(NO_CAS)
    folder = tmp_path_factory.mktemp("browser")
    port, other, cas_port = free_port(), free_port(), free_port()
    base = f"http://127.0.0.1:{port}/"
    for name in ("providers", "cas", "server"):
        (folder / name).mkdir()
    providers = start_npm(
        folder / "providers", other, "http://localhost:1/", base=base, host="localhost"
    )
    with urlopen(f"{providers.url}/saml/metadata", timeout=60) as answer:
        metadata = answer.read().replace(b"http://127.0.0.1:", b"http://localhost:")
    (folder / "server" / "idp.xml").write_bytes(metadata)
    cas = start_cas(folder / "cas", cas_port, base=base)
    templates = {
        "localpart_template": "{{ user.preferred_username }}",
        "display_name_template": "{{ user.name }}",
    }
    further: dict[str, object] = {
        "public_baseurl": base,
        "listeners": [
            {"port": port, "bind_addresses": ["127.0.0.1"], "resources": [{"names": ["client"]}]}
        ],
        "ip_range_whitelist": ["127.0.0.1", "::1"],
        "oidc_providers": [
            {
                "idp_id": "town",
                "idp_name": "Town hall",
                "issuer": f"http://localhost:{other}/oidc",
                "skip_verification": True,
                "client_id": "matrix",
                "client_secret": "open sesame",
                "scopes": ["openid", "profile"],
                "user_mapping_provider": {"config": {**templates, "confirm_localpart": True}},
            }
        ],
        "cas_config": {
            "enabled": True,
            "server_url": f"http://localhost:{cas_port}/cas/",
            "idp_name": "Library",
            "allow_existing_users": True,
        },
        **yaml.safe_load(config_of(slapd)),
        "saml2_config": {
            "idp_name": "School",
            "allow_existing_users": True,
            "sp_config": {"metadata": {"local": ["idp.xml"]}},
        },
    }
    files = ServerFiles(folder / "server", SQLiteConfig(str(folder / "homeserver.db")), further)
    try:
        yield Served(files.start(), f"http://localhost:{other}/app")
    finally:
        files.end()
        cas.end()
        providers.end()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(NO_BROWSER)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Person:
    """A user with a browser."""

    def __init__(self, browser: Browser, served: Served, locale: str) -> None:
        self.served = served
        self.base = f"http://127.0.0.1:{served.server.ports[0]}"
        self._locale = locale
        self._pictures = 0
        self.context: BrowserContext = browser.new_context(locale=locale)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(MILLISECONDS)

    def at_school(self, name: str) -> None:
        """Set who is signed in at the SAML provider."""
        self.context.add_cookies([{"name": "user", "value": name, "url": self.served.app}])

    def look(self, words: str, page: Page | None = None) -> None:
        """Wait until the page has a text."""
        shown = page or self.page
        shown.get_by_text(words).first.wait_for()
        folder = os.environ.get("MAHALLA_SCREENSHOTS")
        if folder:
            self._pictures += 1
            shown.screenshot(
                path=f"{folder}/upstream-{self._locale}-{self._pictures:02}.png", full_page=True
            )

    def redeem(self) -> dict[str, Any]:
        """Sign in the client that the browser was redirected to."""
        self.page.wait_for_url(f"{self.served.app}?**")
        token = parse_qs(urlsplit(self.page.url).query)["loginToken"][0]
        reply = self.served.server.request(
            "POST", f"{V3}/login", {"type": "m.login.token", "token": token}
        )
        assert reply.status == 200, reply.body
        session: dict[str, Any] = reply.json
        return session


def sign_in_at_the_town_hall(page: Page, name: str) -> None:
    page.fill("input[name=login]", name)
    page.fill("input[name=password]", "whatever")
    page.click("button[type=submit]")
    page.get_by_text("Authorize").first.wait_for()
    page.click("button[type=submit]")


def test_a_user_signs_in_with_oidc_and_confirms(served: Served, chromium: Browser) -> None:
    person = Person(chromium, served, "uz")
    page = person.page
    page.goto(f"{person.base}{V3}/login/sso/redirect?redirectUrl={served.app}")
    page.click("text=Town hall")
    sign_in_at_the_town_hall(page, "alice")
    person.look("Ushbu serverdagi nomingizni tanlang")
    assert page.input_value("#username") == "alice"
    page.fill("#username", "not a name")
    page.keyboard.press("Enter")
    person.look("Nomda faqat")
    page.fill("#username", "alice")
    page.keyboard.press("Enter")
    person.look("localhost:")
    page.keyboard.press("Tab")  # skip the link to sign in with another account
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    session = person.redeem()
    assert session["user_id"] == "@alice:localhost"

    def delete(auth: object) -> Any:
        path = f"{V3}/devices/{session['device_id']}"
        connection = served.server.connect()
        connection.request(
            "DELETE",
            path,
            json.dumps({"auth": auth} if auth else {}),
            {"Authorization": f"Bearer {session['access_token']}"},
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    asked = delete(None)[1]["session"]
    with page.expect_popup() as opened:
        page.evaluate(
            "url => { window.heard = [];"
            " window.addEventListener('message', e => window.heard.push(e.data));"
            " window.open(url); }",
            f"{person.base}{V3}/auth/m.login.sso/fallback/web?session={asked}",
        )
    popup = opened.value
    person.look("qurilmalarni hisobdan chiqarish", popup)
    popup.click("text=Town hall")
    popup.fill("[name=login]", "alice")  # the provider asks again, despite its session
    popup.fill("[name=password]", "whatever")
    popup.keyboard.press("Enter")
    person.look("Rahmat, tasdiqlandi", popup)
    page.wait_for_function("window.heard.includes('authDone')")
    assert delete({"session": asked})[0] == 200


def test_a_user_signs_in_with_saml(served: Served, chromium: Browser) -> None:
    person = Person(chromium, served, "ru")
    served.server.register("bob")
    person.at_school("bob")
    person.page.goto(f"{person.base}{V3}/login/sso/redirect/saml?redirectUrl={served.app}%3Fx=1")
    person.look("Перейти на localhost:")
    person.page.click("button")
    assert person.redeem()["user_id"] == "@bob:localhost"


def test_a_user_signs_in_to_the_pages(served: Served, chromium: Browser) -> None:
    person = Person(chromium, served, "en")
    served.server.register("carol")
    person.at_school("carol")
    person.page.goto(f"{person.base}/_mahalla/sign_in?next=/%3Fdone")
    person.page.click("text=School")
    person.page.wait_for_url(f"{person.base}/?done")


def test_a_user_signs_in_with_cas(served: Served, chromium: Browser) -> None:
    person = Person(chromium, served, "en")
    person.page.goto(f"{person.base}/_mahalla/sign_in?next=/%3Fdone")
    person.page.click("text=Library")
    person.page.fill("[name=username]", "alice")
    person.page.fill("[name=password]", "wonderland")
    person.page.keyboard.press("Enter")
    person.page.wait_for_url(f"{person.base}/?done")
    person.page.goto(f"{person.base}/_mahalla/account")
    person.look("@alice:localhost")


def test_a_user_signs_in_with_a_directory_password(
    served: Served, chromium: Browser, slapd: Slapd
) -> None:
    slapd.add_person("dora", cn="Dora Maar", mail="dora@example.com")
    person = Person(chromium, served, "uz")
    person.page.goto(f"{person.base}{V3}/login/sso/redirect?redirectUrl={served.app}")
    person.page.fill("[name=name]", "dora")
    person.page.fill("[name=password]", "guessed")
    person.page.keyboard.press("Enter")
    person.look("Nom yoki parol noto‘g‘ri.")
    person.page.fill("[name=password]", "wonderland")
    person.page.keyboard.press("Enter")
    person.look("localhost:")
    person.page.click("main form:not(.who) button")
    assert person.redeem()["user_id"] == "@dora:localhost"
