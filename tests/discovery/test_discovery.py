"""Endpoints without an account: versions, well-known documents, the landing page."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest

from homeserver.config.load import ConfigError
from homeserver.services.pages.languages import Languages
from homeserver.web.landing import LandingPage
from homeserver.web.pages import Pages
from storage.engine.database import Database
from tests.helpers.server import TestServer

POLICY_KEY = "6yhHGKhCiXTSEN2ksjV7kX/N6rBQZ3Xb+M7LlC6NS+s"


def configured(tmp_path: Path, database: Database, config: str) -> TestServer:
    return TestServer(tmp_path, database, config)


def test_the_supported_versions_are_listed(server: TestServer) -> None:
    answer = server.get("/_matrix/client/versions")
    assert answer.status == 200
    assert answer.json["versions"][0] == "v1.1"
    assert answer.json["versions"][-1] == "v1.19"
    assert set(answer.json["unstable_features"].values()) == {True}
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("rooms", "forced"),
    [
        ("off", set()),
        ("invite", {"private", "trusted_private"}),
        ("all", {"public", "private", "trusted_private"}),
    ],
)
def test_rooms_that_are_always_encrypted_are_advertised(
    tmp_path: Path, sqlite_database: Database, rooms: str, forced: set[str]
) -> None:
    server = configured(
        tmp_path, sqlite_database, f"encryption_enabled_by_default_for_room_type: '{rooms}'\n"
    )
    features = server.get("/_matrix/client/versions").json["unstable_features"]
    prefix = "io.element.e2ee_forced."
    assert {name.removeprefix(prefix) for name in features if name.startswith(prefix)} == forced


@pytest.mark.parametrize("document", ["client", "server", "support", "policy_server"])
def test_a_document_that_is_not_configured_is_not_found(server: TestServer, document: str) -> None:
    answer = server.get(f"/.well-known/matrix/{document}")
    assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")


def test_configured_documents_are_returned(tmp_path: Path, sqlite_database: Database) -> None:
    server = configured(
        tmp_path,
        sqlite_database,
        "public_baseurl: https://matrix.example.org/\nextra_well_known_client_content:"
        " {org.example: 1}\n"
        "serve_server_wellknown: true\nadmin_contact: mailto:admin@example.org\nsupport_page:"
        " https://example.org/help\n"
        f"policy_server_public_key: {POLICY_KEY}",
    )
    assert server.get("/.well-known/matrix/client").json == {
        "m.homeserver": {"base_url": "https://matrix.example.org/"},
        "org.example": 1,
    }
    assert server.get("/.well-known/matrix/server").json == {"m.server": "example.org:443"}
    assert server.get("/.well-known/matrix/support").json == {
        "contacts": [{"email_address": "admin@example.org", "role": "m.role.admin"}],
        "support_page": "https://example.org/help",
    }
    assert server.get("/.well-known/matrix/policy_server").json == {
        "public_keys": {"ed25519": POLICY_KEY}
    }


@pytest.mark.parametrize("key", ["", "short", "é", POLICY_KEY[:-1] + "===A"])
def test_an_invalid_key_of_a_policy_server_is_refused(
    tmp_path: Path, sqlite_database: Database, key: str
) -> None:
    with pytest.raises(ConfigError, match="policy_server_public_key"):
        configured(tmp_path, sqlite_database, f"policy_server_public_key: '{key}'")


@pytest.mark.parametrize(
    ("contact", "document"),
    [
        (
            '"@admin:example.org"',
            {"contacts": [{"matrix_id": "@admin:example.org", "role": "m.role.admin"}]},
        ),
        ("https://example.org/admins", {"support_page": "https://example.org/admins"}),
    ],
)
def test_further_contacts_are_in_the_support_document(
    tmp_path: Path, sqlite_database: Database, contact: str, document: object
) -> None:
    server = configured(tmp_path, sqlite_database, f"admin_contact: {contact}")
    assert server.get("/.well-known/matrix/support").json == document


def test_the_landing_page_explains_how_to_sign_in_and_loads_nothing(
    tmp_path: Path, sqlite_database: Database
) -> None:
    page = configured(tmp_path, sqlite_database, "public_baseurl: https://matrix.example.org/").get(
        "/"
    )
    text = page.body.decode()
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "https://matrix.example.org/" in text
    assert "Create an account" in text
    assert not re.search(r"src|@import|url\(|<(?!a )[^>]*href", text), (
        "it only links to other sites"
    )
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = b64encode(sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in page.headers["content-security-policy"]


def test_browsers_are_redirected_to_the_web_client(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = configured(
        tmp_path, sqlite_database, "web_client_location: https://chat.example.org/\n"
    )
    answer = server.get("/")
    assert (answer.status, answer.headers["location"]) == (303, "https://chat.example.org/")


def test_clients_get_the_identity_server(tmp_path: Path, sqlite_database: Database) -> None:
    config = (
        "public_baseurl: https://m.example.org/\ndefault_identity_server: https://id.example.org\n"
    )
    server = configured(tmp_path, sqlite_database, config)
    assert server.get("/.well-known/matrix/client").json == {
        "m.homeserver": {"base_url": "https://m.example.org/"},
        "m.identity_server": {"base_url": "https://id.example.org"},
    }


def test_the_landing_page_links_to_the_account_page(server: TestServer) -> None:
    link = re.search(r'<a href="([^"]+)">Your account</a>', server.get("/").body.decode())
    assert link is not None
    assert server.get(link[1]).headers["location"].startswith("/_mahalla/sign_in")


def test_the_landing_page_of_a_closed_server_offers_no_registration() -> None:
    languages = Languages()
    page = LandingPage(
        pages=Pages(languages=languages, server_name="example.org"),
        languages=languages,
        address=None,
        registration_open=False,
    ).get("")
    assert isinstance(page.body, bytes)
    assert b"The administrators of this server create accounts" in page.body
    assert b"Create an account" not in page.body


@pytest.mark.parametrize(
    ("wanted", "lang", "words"),
    [
        ("uz-UZ,uz;q=0.9,en;q=0.8", "uz", "Matrix serveri ishlamoqda"),
        ("uz-Cyrl-UZ", "uz-Cyrl", "сервери ишламоқда"),
        ("kaa, ru;q=0.5", "kaa", "serveri islep tur"),
        ("fr;q=0.9, ru;q=0.8, en;q=0.1", "ru", "сервер Matrix работает"),
        ("en-GB, ru;q=0.5", "en", "This Matrix homeserver is running"),
        ("tlh", "en", "This Matrix homeserver is running"),
        (";;q=,,x=~-" * 50, "en", "This Matrix homeserver is running"),
    ],
)
def test_the_landing_page_is_in_the_readers_language(
    server: TestServer, wanted: str, lang: str, words: str
) -> None:
    page = server.get("/", headers={"Accept-Language": wanted})
    assert page.headers["vary"] == "Accept-Language"
    text = page.body.decode()
    assert f'<html lang="{lang}">' in text
    assert words in text


def test_a_user_registers_and_logs_out(server: TestServer) -> None:
    alice = server.register("alice")
    assert alice.user_id == "@alice:example.org"
    assert alice.post("/_matrix/client/v3/logout").status == 200
    assert alice.post("/_matrix/client/v3/logout").errcode == "M_UNKNOWN_TOKEN"


def test_url_previews_are_no_capability_by_default(server: TestServer) -> None:
    answer = server.register("alice").get("/_matrix/client/v3/capabilities")
    assert answer.json["capabilities"]["io.element.msc4452.preview_url"] == {"enabled": False}
