"""Sign-in with an identity provider from a client: new and existing accounts, redirects, and
failures."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from storage.engine.database import Database
from storage.threepids.threepids import ThreepidRow, ThreepidStore
from tests.helpers.audit_records import audit_records
from tests.helpers.browser import Browser
from tests.helpers.http import Answer
from tests.helpers.openid import CALLBACK, CONFIG, TEMPLATES, OpenIDProvider
from tests.helpers.server import START, TestServer
from tests.helpers.upstream import (
    ALICE,
    CLIENT,
    REDIRECT,
    check_imported_profile,
    open_provider,
    redeem,
    sign_in,
)


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider) -> TestServer:
    return TestServer(tmp_path, sqlite_database, CONFIG + TEMPLATES, web=provider)


def test_the_login_flows_list_the_providers(server: TestServer) -> None:
    flows = server.get("/_matrix/client/v3/login").json["flows"]
    [sso] = [flow for flow in flows if flow["type"] == "m.login.sso"]
    assert sso == {
        "type": "m.login.sso",
        "identity_providers": [{"id": "oidc-town", "name": "Town hall"}],
        "oauth_aware_preferred": True,
        "org.matrix.msc3824.delegated_oidc_compatibility": True,
    }
    assert {"type": "m.login.token"} in flows


def test_the_first_sign_in_creates_an_account(server: TestServer, provider: OpenIDProvider) -> None:
    browser = Browser(server)
    where = open_provider(browser, CLIENT + "?a=b%26c%26loginToken%3Dold")
    assert where.startswith("https://login.example.com/authorize?")
    browser.open(provider.sign_in(where, **ALICE))
    assert "Continue to client.example?" in browser.words
    assert "@alice:example.org" in browser.words
    assert "form-action 'self' https:" in browser.answer.headers["content-security-policy"]
    browser.send()
    assert re.fullmatch(re.escape(CLIENT) + r"\?a=b&c&loginToken=\w{32}", browser.location)
    alice = redeem(server, browser, device_id="PHONE")
    assert (alice.user_id, alice.device_id) == ("@alice:example.org", "PHONE")
    check_imported_profile(server, alice)


def test_a_link_survives_a_change_of_the_name(server: TestServer, provider: OpenIDProvider) -> None:
    first = sign_in(server, provider, Browser(server))
    second = sign_in(server, provider, Browser(server), preferred_username="queen", name="Queen")
    assert second.user_id == first.user_id
    assert (
        server.get(f"/_matrix/client/v3/profile/{first.user_id}").json["displayname"]
        == "Alice Liddell"
    )


def test_profiles_are_imported_at_each_sign_in_if_configured(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider
) -> None:
    further = (
        CONFIG
        + TEMPLATES
        + "sso: {update_profile_information: true, client_whitelist: ['https://client.example/']}"
    )
    server = TestServer(tmp_path, sqlite_database, further, web=provider)
    browser = Browser(server)
    browser.open(
        provider.sign_in(
            open_provider(browser), sub="2", preferred_username="bob", email="bob@example.com"
        )
    )
    redeem(server, browser)
    own = ThreepidRow("email", "own@example.com", "@alice:example.org", 1, 1)
    for name, email, has in (
        ("Alice", "a@example.com", ["a@example.com"]),
        ("Alice the Great", "A2@example.com", ["own@example.com", "a2@example.com"]),
        ("Alice the Great", None, ["own@example.com", "a2@example.com"]),
        ("Alice the Great", "bob@example.com", ["own@example.com"]),  # the address is Bob's
        ("Alice the Great", "own@example.com", ["own@example.com"]),
        ("Alice the Great", "a3@example.com", ["own@example.com", "a3@example.com"]),
    ):
        browser.open(
            provider.sign_in(open_provider(browser), **{**ALICE, "name": name, "email": email})
        )
        alice = redeem(
            server, browser
        )  # the client is in `client_whitelist`, so there is no question
        threepids = alice.get("/_matrix/client/v3/account/3pid").json["threepids"]
        assert [each["address"] for each in threepids] == has
        # the provider cannot remove an address that she confirmed herself
        server.run(sqlite_database.write("t", ThreepidStore(sqlite_database).add_threepid, own))
    profile = f"/_matrix/client/v3/profile/{alice.user_id}"
    assert server.get(profile).json["displayname"] == "Alice the Great"
    server.run(server.app.user_data.accounts.do_set_flags(alice.user_id, shadow_banned=True))
    browser.open(provider.sign_in(open_provider(browser), **{**ALICE, "name": "Buy this"}))
    alice = redeem(server, browser)
    assert (alice.get(profile).json["displayname"], server.get(profile).json["displayname"]) == (
        "Buy this",
        "Alice the Great",
    )


def test_a_taken_name_asks_for_another(server: TestServer, provider: OpenIDProvider) -> None:
    server.register("alice")
    server.register("bob")
    browser = Browser(server)
    browser.open(provider.sign_in(open_provider(browser), **ALICE))
    assert "This name is taken" in browser.words
    assert "Alice Liddell" in browser.words
    assert "alice@example.com" in browser.words
    assert browser.page.forms[0].fields["username"] == "alice"
    browser.send(username="bob")
    assert "This name is taken" in browser.words
    browser.send(username="not a name")
    assert "A user name may contain only" in browser.words
    browser.send(username="Alice2")
    assert "@alice2:example.org" in browser.words
    browser.send()
    assert redeem(server, browser).user_id == "@alice2:example.org"


def test_without_a_template_the_user_chooses_a_name(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider
) -> None:
    server = TestServer(tmp_path, sqlite_database, CONFIG, web=provider)
    browser = Browser(server)
    browser.open(provider.sign_in(open_provider(browser), sub="7"))
    assert browser.page.forms[0].fields["username"] == ""
    browser.send(username="white.rabbit")
    assert "@white.rabbit:example.org" in browser.words


def test_a_step_is_used_once_and_in_one_browser(
    server: TestServer, provider: OpenIDProvider
) -> None:
    browser, other = Browser(server), Browser(server)
    back = provider.sign_in(open_provider(browser), **ALICE)
    open_provider(other)
    assert "opened in another browser" in _words(other, back)
    browser.open(back)
    form = browser.page.forms[0]
    other.post(form.action, form.fields)
    assert (other.status, "location" in other.answer.headers) == (400, False)
    browser.send()
    assert browser.status == 303
    browser.post(form.action, form.fields)
    assert browser.status == 400
    assert "was already used" in _words(browser, back)


def _words(browser: Browser, path: str) -> str:
    browser.open(path)
    assert browser.status == 400
    return browser.words


def test_steps_expire(server: TestServer, provider: OpenIDProvider) -> None:
    browser = Browser(server)
    back = provider.sign_in(open_provider(browser), **ALICE)
    server.clock.advance(15 * 60)
    assert "This page has expired" in _words(browser, back)


def test_a_login_token_is_used_once_within_a_minute(
    server: TestServer, provider: OpenIDProvider
) -> None:
    browser = Browser(server)
    browser.open(provider.sign_in(open_provider(browser), **ALICE))
    browser.send()
    redeem(server, browser)
    with pytest.raises(AssertionError, match="M_FORBIDDEN"):
        redeem(server, browser)
    browser.open(provider.sign_in(open_provider(browser), **ALICE))
    browser.send()
    server.clock.advance(61)
    with pytest.raises(AssertionError, match="M_FORBIDDEN"):
        redeem(server, browser)


NO_CLIENTS = [
    "",
    "client.example",
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "data:text/html,hi",
    "https://u:p@client.example/",
    "https:///nowhere",
    "https://evil.example%5C.client.example/",
    "https://client.example/%0a",
    "https://client.example/" + "a" * 5000,
]


def test_invalid_redirect_urls_get_no_token(server: TestServer) -> None:
    browser = Browser(server)
    for address in NO_CLIENTS:
        browser.open(f"{REDIRECT}/oidc-town?redirectUrl={address}")
        assert (browser.status, "location" in browser.answer.headers) == (400, False), address


def test_a_client_may_have_its_own_scheme(server: TestServer, provider: OpenIDProvider) -> None:
    browser = Browser(server)
    browser.open(provider.sign_in(open_provider(browser, "io.element.app:/done"), **ALICE))
    assert "Continue to io.element.app:?" in browser.words
    assert (
        "form-action 'self' io.element.app:;" in browser.answer.headers["content-security-policy"]
    )
    browser.send()
    assert browser.location.startswith("io.element.app:/done?loginToken=")


def test_a_client_reaches_a_provider_through_the_own_sign_in_page(
    server: TestServer, provider: OpenIDProvider
) -> None:
    browser = Browser(server)
    browser.open(f"{REDIRECT}?redirectUrl={CLIENT}")
    browser.open(browser.location)
    assert browser.path.startswith("/_mahalla/sign_in")
    browser.follow("Town hall")
    browser.open(provider.sign_in(browser.location, **ALICE))
    assert "Continue to client.example?" in browser.words
    browser.send("/_mahalla/sso")
    assert redeem(server, browser).user_id == "@alice:example.org"


@pytest.mark.parametrize("known", ["[]", "['https://client.example/']"])
def test_terms_come_before_the_token(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider, known: str
) -> None:
    terms = """
user_consent:
  policies:
    terms:
      version: "1"
      documents: {en: {name: Terms of use, url: "https://example.org/terms"}}
"""
    server = TestServer(
        tmp_path,
        sqlite_database,
        CONFIG + TEMPLATES + terms + f"sso: {{client_whitelist: {known}}}\n",
        web=provider,
    )
    browser = Browser(server)
    browser.open(provider.sign_in(open_provider(browser), **ALICE))
    assert browser.path.startswith("/_mahalla/consent")
    assert "loginToken" not in browser.text
    browser.send(agree_terms="true")
    if known == "[]":
        assert "Continue to client.example?" in browser.words
        browser.send("/_mahalla/sso")
    else:
        browser.answer = Answer(303, {"location": browser.page.links["Continue"]}, b"")
    assert redeem(server, browser).user_id == "@alice:example.org"
    browser.open(
        provider.sign_in(open_provider(browser), **ALICE)
    )  # a user who agreed is not asked again
    assert not browser.path.startswith("/_mahalla/consent")


def test_an_unknown_provider_shows_a_page(server: TestServer) -> None:
    browser = Browser(server)
    browser.open(f"{REDIRECT}/nobody?redirectUrl={CLIENT}")
    assert browser.status == 404
    assert "no such sign-in service" in browser.words


def test_the_user_chooses_one_of_several_providers(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider
) -> None:
    further = (
        CONFIG + "cas_config: {enabled: true, server_url: 'https://cas.example.com/cas',"
        " idp_name: The <other>}"
    )
    further += "\noauth: {enabled: false}\n"
    server = TestServer(tmp_path, sqlite_database, further, web=provider)
    browser = Browser(server)
    browser.open(f"{REDIRECT}?redirectUrl={CLIENT}%3Fa=b")
    assert list(browser.page.links) == ["Town hall", "The <other>"]
    browser.follow("Town hall")
    browser.open(provider.sign_in(browser.location, sub="1"))
    assert browser.status == 200
    browser.open(f"{REDIRECT}?redirectUrl={CLIENT}")
    browser.follow("The <other>")
    assert browser.location.startswith(
        "https://cas.example.com/cas/login?service=https%3A%2F%2Fmatrix.example.org%2F"
    )


def test_existing_accounts_are_linked_only_if_configured(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider
) -> None:
    further = CONFIG + TEMPLATES + "  allow_existing_users: true\n"
    server = TestServer(tmp_path, sqlite_database, further, web=provider)
    before = server.register("alice")
    assert sign_in(server, provider, Browser(server)).user_id == before.user_id
    browser = Browser(server)
    browser.open(provider.sign_in(open_provider(browser), **{**ALICE, "sub": "2"}))
    assert browser.status == 403
    assert "belongs to somebody else" in browser.words


def test_no_account_is_created_if_registration_is_disabled(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider
) -> None:
    server = TestServer(
        tmp_path, sqlite_database, CONFIG + "  enable_registration: false\n", web=provider
    )
    browser = Browser(server)
    browser.open(provider.sign_in(open_provider(browser), **ALICE))
    assert browser.status == 403
    assert "You have no account on this server" in browser.words


def test_unusable_accounts_are_refused(server: TestServer, provider: OpenIDProvider) -> None:
    alice = sign_in(server, provider, Browser(server))
    server.run(server.app.user_data.accounts.do_set_flags(alice.user_id, locked=True))
    browser = Browser(server)
    browser.open(provider.sign_in(open_provider(browser), **ALICE))
    assert "This account is locked" in browser.words
    server.run(server.app.user_data.deactivation.do_deactivate(alice.user_id, erase=False))
    browser.open(provider.sign_in(open_provider(browser), **ALICE))
    assert (browser.status, "has been closed" in browser.words) == (403, True)
    refused = [
        why for event, why in audit_records(server, alice.user_id) if event == "sign_in_refused"
    ]
    assert refused == ["locked", "deactivated"]


def test_an_account_that_is_locked_during_a_step_is_refused(
    server: TestServer, provider: OpenIDProvider
) -> None:
    alice = sign_in(server, provider, Browser(server))
    browser = Browser(server)
    browser.open(provider.sign_in(open_provider(browser), **ALICE))
    server.run(server.app.user_data.accounts.do_set_flags(alice.user_id, locked=True))
    browser.send()
    assert browser.status == 403


def test_pages_are_in_the_language_of_the_user(server: TestServer) -> None:
    browser = Browser(server, languages="ru")
    browser.open(CALLBACK)
    assert "Войти не удалось" in browser.words


# Confirming with the provider.


def test_the_sign_in_page_has_a_button(server: TestServer, provider: OpenIDProvider) -> None:
    browser = Browser(server)
    browser.open("/_mahalla/sign_in?next=/%3Fhello")
    browser.follow("Town hall")
    browser.open(provider.sign_in(browser.location, **ALICE))
    assert (browser.status, browser.path) == (200, "/?hello")
    browser.open("/_mahalla/sign_in?next=/%3Fagain")
    assert browser.path == "/?again"


def sign_in_again(browser: Browser, provider: OpenIDProvider, **claims: Any) -> None:
    """Sign in with the provider's button, with or without a session there."""
    browser.open("/_mahalla/sign_in?next=/%3Fhello&again=true")
    browser.follow("Town hall")
    assert parse_qs(urlsplit(browser.location).query)["prompt"] == ["login"]
    browser.open(provider.sign_in(browser.location, **ALICE, **claims))


def test_reauthentication_is_required_and_checked(
    server: TestServer, provider: OpenIDProvider
) -> None:
    browser = Browser(server)
    browser.open("/_mahalla/sign_in?next=/%3Fhello")
    browser.follow("Town hall")
    assert "prompt" not in parse_qs(urlsplit(browser.location).query)
    sign_in_again(browser, provider)
    assert browser.path == "/?hello"
    sign_in_again(browser, provider, auth_time=START)
    assert browser.path == "/?hello"
    sign_in_again(browser, provider, auth_time=START - 3600)
    assert (browser.status, "did not ask you to" in browser.words) == (403, True)


def test_a_wrong_password_keeps_the_reauthentication(server: TestServer) -> None:
    server.register("bob")
    browser = Browser(server)
    browser.open("/_mahalla/sign_in?next=/%3Fhello&again=true")
    browser.send("/_mahalla/sign_in", name="bob", password="wrong")
    browser.follow("Town hall")
    assert parse_qs(urlsplit(browser.location).query)["prompt"] == ["login"]


@pytest.mark.parametrize(
    ("auth_time", "counts"), [(None, False), (START - 3600, False), (START - 60, True)]
)
def test_irreversible_operations_require_a_recent_sign_in(
    server: TestServer, provider: OpenIDProvider, auth_time: float | None, counts: bool
) -> None:
    browser = Browser(server)
    browser.open("/_mahalla/sign_in?next=/_mahalla/account?action=org.matrix.account_deactivate")
    browser.follow("Town hall")
    claims = {} if auth_time is None else {"auth_time": auth_time}
    browser.open(provider.sign_in(browser.location, **ALICE, **claims))
    form = next(form for form in browser.page.forms if form.fields.get("do") == "deactivate")
    browser.post(form.action, form.fields)
    if not counts:
        assert browser.path.startswith("/_mahalla/sign_in?")
        browser.follow("Town hall")
        assert parse_qs(urlsplit(browser.location).query)["prompt"] == ["login"]
        browser.open(provider.sign_in(browser.location, **ALICE))
        form = next(form for form in browser.page.forms if form.fields.get("do") == "deactivate")
        browser.post(form.action, form.fields)
    assert "Your account is closed" in browser.words
