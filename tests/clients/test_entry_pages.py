"""Registration in a real browser: terms of service, approval by an administrator, branding; in two
languages.

One server and one browser for the file; see `tests/helpers/real_browser.py`.
"""

import json
from collections.abc import Iterator
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser

from homeserver.services.accounts.registration import RegistrationRequest
from homeserver.services.accounts.shared_secret_registration import compute_mac
from storage.engine.database import SQLiteConfig
from tests.helpers.images import picture
from tests.helpers.real_browser import APP, SECONDS, BrowserUser, EmailLinks, confirm_address
from tests.helpers.real_server import RealServer, running_server

KNOWN = "https://known.example.com/"
REDIRECT = "/_matrix/client/v3/login/sso/redirect"
SECRET = "a secret for tests"
UZBEK = """# Umumiy qoidalar

Xizmatdan faqat o‘qish va ish uchun foydalaning.

- Parolingizni hech kimga bermang.
- Boshqalarga hurmat bilan munosabatda bo‘ling.
"""


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, email_links: tuple[EmailLinks, int]
) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "logo.png").write_bytes(picture(64, 64))
    (folder / "shartlar.txt").write_text(UZBEK, encoding="utf-8")
    configuration = {
        "email": {
            "smtp_host": "127.0.0.1",
            "smtp_port": email_links[1],
            "notif_from": "server@example.org",
        },
        "rc_3pid_validation": {"per_second": 1000, "burst_count": 1000},
        "registration_shared_secret": SECRET,
        "sso": {"client_whitelist": [KNOWN]},
        "registration_requires_approval": True,
        "registration_approval_emails": {"admin@example.org": "ru"},
        "registrations_require_3pid": ["email"],
        "allowed_local_3pids": [{"medium": "email", "pattern": "[^@]+@example[.]org"}],
        "branding": {"name": "Namuna universiteti", "logo": "logo.png", "colour": "#7a2e00"},
        "user_consent": {
            "block_events_error": "%(consent_uri)s",
            "policies": {
                "terms": {
                    "version": "1.0",
                    "documents": {
                        "uz": {"name": "Foydalanish shartlari", "path": "shartlar.txt"},
                        "ru": {
                            "name": "Условия использования",
                            "url": "https://example.org/terms-ru",
                        },
                    },
                }
            },
        },
    }
    database = SQLiteConfig(str(folder / "homeserver.db"))
    with running_server(folder, database, baseurl=True, configuration=configuration) as server:
        yield server


def make_administrator(url: str, name: str) -> None:
    path = f"{url}/_synapse/admin/v1/register"
    with urlopen(path, timeout=SECONDS) as answer:
        nonce = json.load(answer)["nonce"]
    mac = compute_mac(
        SECRET, nonce, RegistrationRequest(username=name, password="wonderland", is_admin=True)
    )
    body = {"nonce": nonce, "username": name, "password": "wonderland", "admin": True, "mac": mac}
    request = Request(path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=SECONDS) as answer:
        assert json.load(answer)["user_id"] == f"@{name}:localhost"


def test_a_user_registers_with_terms_and_approval(
    chromium: Browser, served: RealServer, email_links: tuple[EmailLinks, int]
) -> None:
    size = {"width": 360, "height": 740}
    alice = BrowserUser(chromium, served, "uz", viewport=size, color_scheme="dark", is_mobile=True)
    alice.open("/")
    alice.check_page()
    alice.open("/_mahalla/register")
    assert alice.page.inner_text("header") == "Namuna universiteti"
    alice.fill(address="alice@elsewhere.example")
    assert "Tashkilotingiz pochtasini" in alice.page.inner_text("[role=alert]")
    alice.fill(address="alice@example.org")
    confirm_address(alice, email_links[0], 1)
    links = alice.page.locator("a[hreflang=uz]")
    assert links.inner_text() == "Foydalanish shartlari"
    document = links.get_attribute("href")
    assert document is not None
    alice.page.check("[name=agree_terms]")
    alice.fill(name="alice", password="wonderland", password_again="wonderland")
    assert alice.page.inner_text("h1") == "Hisobingiz yaratildi va tasdiqlanishini kutmoqda"
    alice.check_page()
    alice.open("/_mahalla/account")
    alice.fill(name="alice", password="wonderland")
    assert "ma’muri ko‘rib chiqadi" in alice.page.inner_text("[role=alert]")
    alice.check_page()

    make_administrator(served.url, "root")
    root = BrowserUser(chromium, served, "ru")
    root.wait_for_emails(email_links[0], 2)
    assert email_links[0].links[1].endswith("/_mahalla/approvals")
    root.open(email_links[0].links[1])
    root.fill(name="root", password="wonderland")
    assert "@alice:localhost" in root.page.inner_text("main")
    root.check_page()
    root.page.click("summary")
    root.check_page()
    root.press("button[value=approve]")
    assert root.page.inner_text("[role=status]") == "Учётная запись подтверждена."
    root.check_page()

    # a user who was not asked at registration is asked before allowing a client, and finds the
    # terms through the account page
    root.open("/_mahalla/account")
    root.check_page()
    root.press("a[href$='/_mahalla/consent']")
    assert root.page.locator("a[hreflang=ru]").inner_text() == "Условия использования"
    root.check_page()
    root.page.focus("[name=agree_terms]")
    root.page.keyboard.press("Space")
    root.press("form.fields button")
    assert root.page.inner_text("h1") == "Спасибо"
    root.check_page()

    alice.wait_for_emails(email_links[0], 3)
    alice.open("/_mahalla/account")
    alice.fill(name="alice", password="wonderland")
    assert alice.page.inner_text("h1") == "Hisobingiz"
    alice.check_page()
    alice.open(document)
    assert alice.page.inner_text("h1") == "Foydalanish shartlari"
    alice.check_page()


def test_a_client_of_the_older_api_signs_in_by_sso(chromium: Browser, served: RealServer) -> None:
    """The Content-Security-Policy of our pages must permit the redirect from the form to the
    client."""
    make_administrator(served.url, "carol")
    carol = BrowserUser(chromium, served, "en-GB")
    carol.open(f"{REDIRECT}?{urlencode({'redirectUrl': APP + '?a=1'})}")
    carol.fill(name="carol", password="wonderland")
    assert carol.page.inner_text("h1") == "Terms of service"
    carol.page.check("[name=agree_terms]")
    carol.fill()
    assert carol.page.inner_text("h1") == "Continue to app.example.com?"
    carol.check_page()
    with carol.page.expect_request(f"{APP}**") as asked:
        carol.page.click("form:not(.who) button")
    assert "loginToken=" in asked.value.url

    repeated = BrowserUser(chromium, served, "en-GB")
    repeated.open(f"{REDIRECT}?{urlencode({'redirectUrl': KNOWN})}")
    with repeated.page.expect_request(f"{KNOWN}**") as asked:
        repeated.page.fill("[name=name]", "carol")
        repeated.page.fill("[name=password]", "wonderland")
        repeated.page.keyboard.press("Enter")
    assert "loginToken=" in asked.value.url
