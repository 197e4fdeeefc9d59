"""Several OpenID providers, one of them hostile: it never receives the codes of another (RFC 9700
section 4.4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec
import pytest

from federation.http_client.client import WebResponse
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.openid import CALLBACK, CONFIG, ISSUER, TEMPLATES, OpenIDProvider
from tests.helpers.server import TestServer
from tests.helpers.upstream import ALICE, CLIENT, REDIRECT

EVIL = "https://evil.example"
OTHER = f"""
- idp_id: other
  idp_name: Other
  issuer: {EVIL}
  client_id: m2
  client_secret: s2
"""
SHARED = f"  redirect_uri: https://matrix.example.org{CALLBACK}\n"
FAILED = "sign-in service is not working"


class HostileAndHonest(OpenIDProvider):
    """Serves an honest provider and a hostile one, which records the codes that it receives."""

    def __init__(self) -> None:
        super().__init__()
        self.stolen: list[str] = []

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        **limits: Any,
    ) -> WebResponse:
        if not url.startswith(EVIL):
            return await super().request(method, url, headers, body, **limits)
        if url.endswith("/.well-known/openid-configuration"):
            return _answer(
                url, msgspec.json.encode(self.document).replace(ISSUER.encode(), EVIL.encode())
            )
        self.stolen += parse_qs(body.decode()).get("code", [])
        return _answer(url, b"{}", 400)


def _answer(url: str, body: bytes, status: int = 200) -> WebResponse:
    return WebResponse(url, status, {"content-type": "application/json"}, body)


def start_sign_in(browser: Browser, idp_id: str) -> dict[str, str]:
    """Return the parameters of the redirect to a provider."""
    browser.open(f"{REDIRECT}/oidc-{idp_id}?redirectUrl={CLIENT}")
    return {name: values[0] for name, values in parse_qs(urlsplit(browser.location).query).items()}


def mix_up(server: TestServer, provider: HostileAndHonest, further: str = "") -> Browser:
    """Start a sign-in with the hostile provider, which redirects the user to the honest one with
    the state of an attacker (mix-up attack)."""
    attacker, victim = Browser(server), Browser(server)
    given, state = start_sign_in(attacker, "town"), start_sign_in(victim, "other")["state"]
    victim.open(
        provider.sign_in(f"{ISSUER}/authorize?{urlencode({**given, 'state': state})}", **ALICE)
        + further
    )
    return victim


@pytest.mark.parametrize(
    ("town", "other"), [("", ""), (SHARED, ""), ("", SHARED), (SHARED, SHARED)]
)
def test_no_provider_receives_the_codes_of_another(
    tmp_path: Path, sqlite_database: Database, town: str, other: str
) -> None:
    provider = HostileAndHonest()
    server = TestServer(
        tmp_path, sqlite_database, CONFIG + town + TEMPLATES + OTHER + other, web=provider
    )
    assert FAILED in mix_up(server, provider).words
    assert FAILED in mix_up(server, provider, f"&iss={ISSUER}").words
    assert provider.stolen == []


def test_each_provider_has_its_own_redirect_uri(tmp_path: Path, sqlite_database: Database) -> None:
    provider = HostileAndHonest()
    server = TestServer(tmp_path, sqlite_database, CONFIG + TEMPLATES + OTHER, web=provider)
    browser = Browser(server)
    for idp_id in ("town", "other"):
        assert (
            start_sign_in(browser, idp_id)["redirect_uri"]
            == f"https://matrix.example.org{CALLBACK}/oidc-{idp_id}"
        )
    start_sign_in(browser, "town")
    back = provider.sign_in(browser.location, **ALICE)
    browser.open(back.replace("/oidc-town", ""))  # the shared redirect URI
    assert FAILED in browser.words
    start_sign_in(browser, "town")
    browser.open(provider.sign_in(browser.location, **ALICE))
    assert "Continue to" in browser.words


def test_a_configured_redirect_uri_stays(tmp_path: Path, sqlite_database: Database) -> None:
    provider = HostileAndHonest()
    server = TestServer(
        tmp_path, sqlite_database, CONFIG + SHARED + TEMPLATES + OTHER, web=provider
    )
    browser = Browser(server)
    assert start_sign_in(browser, "town")["redirect_uri"] == f"https://matrix.example.org{CALLBACK}"
    browser.open(provider.sign_in(browser.location, **ALICE))
    assert "Continue to" in browser.words


def test_providers_with_a_shared_redirect_uri_must_send_iss(
    tmp_path: Path, sqlite_database: Database
) -> None:
    provider = HostileAndHonest()
    server = TestServer(
        tmp_path, sqlite_database, CONFIG + SHARED + TEMPLATES + OTHER + SHARED, web=provider
    )
    for iss, text in (("", FAILED), (f"&iss={EVIL}", FAILED), (f"&iss={ISSUER}", "Continue to")):
        browser = Browser(server)
        start_sign_in(browser, "town")
        browser.open(provider.sign_in(browser.location, **ALICE) + iss)
        assert text in browser.words
