"""Confirmation of a client's operation with an identity provider, only by the account's owner and
after they read the operation."""

from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from storage.engine.database import Database
from tests.helpers.audit_records import audit_records
from tests.helpers.browser import Browser
from tests.helpers.openid import CONFIG, TEMPLATES, OpenIDProvider
from tests.helpers.server import START, TestServer, User
from tests.helpers.upstream import ALICE, sign_in

FALLBACK = "/_matrix/client/v3/auth/m.login.sso/fallback/web"


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider) -> TestServer:
    return TestServer(tmp_path, sqlite_database, CONFIG + TEMPLATES, web=provider)


def _delete(alice: User, device: str, auth: object = None) -> tuple[int, dict[str, object]]:
    answer = alice.delete(f"/_matrix/client/v3/devices/{device}", {"auth": auth} if auth else {})
    return answer.status, answer.json


def test_an_operation_is_confirmed_with_the_provider(
    server: TestServer, provider: OpenIDProvider
) -> None:
    browser = Browser(server)
    alice = sign_in(server, provider, browser)
    other = sign_in(server, provider, Browser(server))
    status, asked = _delete(alice, other.device_id)
    assert (status, asked["flows"]) == (401, [{"stages": ["m.login.sso"]}])
    session = asked["session"]
    auth = {"type": "m.login.sso", "session": session}
    assert _delete(alice, other.device_id, auth)[0] == 401
    browser.open(f"{FALLBACK}?session={session}")
    assert "sign out devices" in browser.words
    assert "@alice:example.org" in browser.words
    browser.send(button="oidc-town")
    browser.open(provider.sign_in(browser.location, **ALICE))
    assert "operation is confirmed" in browser.words
    assert "window.onAuthDone" in browser.text
    assert "script-src 'sha256-" in browser.answer.headers["content-security-policy"]
    assert _delete(alice, other.device_id, {"session": session})[0] == 200


def test_confirming_requires_reauthentication(server: TestServer, provider: OpenIDProvider) -> None:
    alice = sign_in(server, provider, Browser(server))
    session = _delete(alice, alice.device_id)[1]["session"]
    browser = Browser(server)
    browser.open(f"{FALLBACK}?session={session}")
    browser.send(button="oidc-town")
    assert parse_qs(urlsplit(browser.location).query)["prompt"] == ["login"]
    browser.open(provider.sign_in(browser.location, **ALICE, auth_time=START - 3600))
    assert (browser.status, "did not ask you to" in browser.words) == (403, True)
    assert _delete(alice, alice.device_id, {"session": session})[0] == 401


def without_asking(address: str) -> str:
    """Return the provider's URL without the parameters that require reauthentication."""
    where = urlsplit(address)
    query = {
        name: values[0]
        for name, values in parse_qs(where.query).items()
        if name not in ("prompt", "max_age")
    }
    return where._replace(query=urlencode(query)).geturl()


@pytest.mark.parametrize("required", [True, False])
def test_removing_the_parameters_does_not_avoid_reauthentication(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider, required: bool
) -> None:
    config = CONFIG if required else CONFIG + "  auth_time_required: false\n"
    server = TestServer(tmp_path, sqlite_database, config + TEMPLATES, web=provider)
    alice = sign_in(server, provider, Browser(server))
    session = _delete(alice, alice.device_id)[1]["session"]
    browser = Browser(server)
    browser.open(f"{FALLBACK}?session={session}")
    browser.send(button="oidc-town")
    assert parse_qs(urlsplit(browser.location).query)["max_age"] == ["0"]
    browser.open(provider.sign_in(without_asking(browser.location), **ALICE))
    assert ("did not ask you to" in browser.words) is required
    assert _delete(alice, alice.device_id, {"session": session})[0] == (401 if required else 200)


def test_another_user_cannot_confirm(server: TestServer, provider: OpenIDProvider) -> None:
    alice = sign_in(server, provider, Browser(server))
    sign_in(server, provider, Browser(server), sub="2", preferred_username="mallory")
    session = _delete(alice, alice.device_id)[1]["session"]
    browser = Browser(server)
    browser.open(f"{FALLBACK}?session={session}")
    browser.send(button="oidc-town")
    browser.open(provider.sign_in(browser.location, sub="2"))
    assert browser.status == 403
    assert f"owner of this account has to confirm an operation: {alice.user_id}" in browser.words
    assert "Another account is signed in at Town hall: @mallory:example.org" in browser.words
    assert "sign out of Town hall, start again in your app" in browser.words
    assert _delete(alice, alice.device_id, {"session": session})[0] == 401
    # nobody authenticated as alice, and mallory's own account was not refused
    happened = [
        record
        for record in audit_records(server, alice.user_id)
        if record[0] not in ("registered", "linked")
    ]
    assert happened[-1] == (
        "confirmation_refused",
        f"DELETE devices {alice.device_id} (@mallory:example.org)",
    )
    assert not [
        event
        for event, _ in audit_records(server, "@mallory:example.org")
        if event.endswith("_refused")
    ]


def test_a_person_without_an_account_cannot_confirm(
    server: TestServer, provider: OpenIDProvider
) -> None:
    alice = sign_in(server, provider, Browser(server))
    session = _delete(alice, alice.device_id)[1]["session"]
    browser = Browser(server)
    browser.languages = "ru"
    browser.open(f"{FALLBACK}?session={session}")
    browser.send(button="oidc-town")
    browser.open(provider.sign_in(browser.location, sub="3"))
    assert "вошёл другой человек, у которого здесь нет учётной записи" in browser.words
    assert audit_records(server, alice.user_id)[-1] == (
        "confirmation_refused",
        f"DELETE devices {alice.device_id} (oidc-town)",
    )


def test_the_description_is_shown_before_the_redirect(
    server: TestServer, provider: OpenIDProvider
) -> None:
    alice = sign_in(server, provider, Browser(server))
    session = _delete(alice, alice.device_id)[1]["session"]
    browser, other = Browser(server), Browser(server)
    browser.open(f"{FALLBACK}?session={session}")
    form = browser.page.forms[0]
    other.post(form.action, {**form.fields, "provider": "oidc-town"})
    assert other.status == 400
    browser.open(f"{FALLBACK}?session=unknown")
    assert browser.status == 400


# The server's own pages.
