"""Registration with a captcha in a real browser, then an application password and a device
authorization grant.

One server and one browser for the file; see `tests/helpers/real_browser.py`. The captcha is this
test's own script, at a host that only the browser resolves; the example plug-in checks its
responses.
"""

import hmac
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser

from storage.engine.database import SQLiteConfig
from tests.helpers.real_browser import SECONDS, BrowserUser
from tests.helpers.real_server import RealServer, running_server

KEY = "shared with the captcha"
CAPTCHA = "https://captcha.example/api.js"
SCRIPT = """
const box = document.querySelector(".g-recaptcha");
box.innerHTML = '<label><input type="checkbox"> I am not a robot</label>'
  + '<input type="hidden" name="g-recaptcha-response">';
box.querySelector("[type=checkbox]").addEventListener("change", () => {
  box.querySelector("[type=hidden]").value = SOLUTION;
});
"""
PROGRAMS = "/_mahalla/account/application_passwords"
V3 = "/_matrix/client/v3"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server")
    configuration = {
        "enable_registration_captcha": True,
        "recaptcha_public_key": "site key",
        "recaptcha_script": CAPTCHA,
        "recaptcha_sources": ["https://captcha.example/"],
        "plugins": [
            {"module": "docs.examples.plugins.own_captcha.OwnCaptcha", "config": {"key": KEY}}
        ],
    }
    database = SQLiteConfig(str(folder / "homeserver.db"))
    with running_server(folder, database, baseurl=True, configuration=configuration) as server:
        yield server


def solution() -> str:
    signed = f"{time.time() + 600:.0f}.once"
    return f"{signed}.{hmac.new(KEY.encode(), signed.encode(), 'sha256').hexdigest()}"


def post(url: str, body: bytes, kind: str) -> Any:
    with urlopen(Request(url, body, {"Content-Type": kind}), timeout=SECONDS) as answer:
        return json.load(answer)


def post_form(url: str, **fields: str) -> Any:
    return post(url, urlencode(fields).encode(), "application/x-www-form-urlencoded")


def test_a_user_registers_with_a_captcha(chromium: Browser, served: RealServer) -> None:
    size = {"width": 360, "height": 740}
    alice = BrowserUser(chromium, served, "ru", viewport=size, is_mobile=True)
    page = alice.page
    # a CSS animation shows the warning after some seconds; pause it
    page.add_init_script(
        "addEventListener('load', () => document.getAnimations().forEach(each => each.pause()))"
    )
    page.route(CAPTCHA, lambda route: route.abort())
    alice.open("/_mahalla/register")
    away = page.get_by_text("captcha.example, откуда он загружается, не отвечает")
    assert not away.is_visible()  # the captcha may still load
    page.evaluate("document.getAnimations().forEach(each => each.finish())")
    assert away.is_visible()
    alice.check_page()

    page.unroute(CAPTCHA)
    page.route(
        CAPTCHA,
        lambda route: route.fulfill(body=SCRIPT.replace("SOLUTION", json.dumps(solution()))),
    )
    alice.open("/_mahalla/register")
    page.get_by_text("I am not a robot").wait_for()
    page.evaluate("document.getAnimations().forEach(each => each.finish())")
    assert not away.is_visible()
    alice.fill(name="alice", password="wonderland", password_again="wonderland")
    assert page.locator("[role=alert]").is_visible()  # not solved
    page.get_by_text("I am not a robot").click()
    alice.fill(name="alice", password="wonderland", password_again="wonderland")

    # an application password
    alice.open(PROGRAMS)
    alice.fill(name="Бот", old_password="wonderland")
    alice.check_page()
    password = page.locator("code", has_text="mhp_").inner_text()
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "alice"},
        "password": password,
    }
    bot = post(f"{served.url}{V3}/login", json.dumps(body).encode(), "application/json")
    assert bot["user_id"] == "@alice:localhost"

    # a device without a browser
    api = f"{served.url}/_mahalla/oauth"
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    metadata = {
        "client_name": "Television",
        "client_uri": "https://tv.example/",
        "grant_types": [grant],
    }
    client_id = post(f"{api}/register", json.dumps(metadata).encode(), "application/json")[
        "client_id"
    ]
    scope = "urn:matrix:client:api:* urn:matrix:client:device:TELEVISION"
    asked = post_form(f"{api}/device", client_id=client_id, scope=scope)
    alice.open(asked["verification_uri"])
    alice.fill(user_code=asked["user_code"])
    assert "Television" in page.inner_text("main")
    alice.decide("allow")
    alice.check_page()
    granted = post_form(
        f"{api}/token", client_id=client_id, grant_type=grant, device_code=asked["device_code"]
    )
    request = Request(
        f"{served.url}{V3}/account/whoami",
        headers={"Authorization": f"Bearer {granted['access_token']}"},
    )
    with urlopen(request, timeout=SECONDS) as answer:
        assert json.load(answer)["device_id"] == "TELEVISION"
    alice.open("/_mahalla/account")
    alice.check_page()
    assert "Television" in page.inner_text("#sessions + ul")
