"""The authorization code flow: requests, consent, redirects, and invalid requests."""

from pathlib import Path

import pytest

from federation.protocol.ids import UserID
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.oauth import BASE, METADATA, Program, assert_refused, challenge_of, returned
from tests.helpers.server import TestServer

WHOAMI = "/_matrix/client/v3/account/whoami"


def test_the_metadata_document_is_complete(server: TestServer) -> None:
    stable = server.get("/_matrix/client/v1/auth_metadata")
    found = stable.json
    assert stable.headers["cache-control"] == "public, max-age=600"
    assert server.get("/_matrix/client/unstable/org.matrix.msc2965/auth_metadata").json == found
    assert server.get("/.well-known/openid-configuration").json == found
    issuer = server.get("/_matrix/client/unstable/org.matrix.msc2965/auth_issuer").json
    assert issuer == {"issuer": found["issuer"]} == {"issuer": BASE + "/"}
    for name in ("authorization", "token", "revocation", "registration", "device_authorization"):
        assert found[f"{name}_endpoint"].startswith(BASE + "/_mahalla/oauth/")
    assert found["response_types_supported"] == ["code"]
    assert {"query", "fragment"} <= set(found["response_modes_supported"])
    assert {"authorization_code", "refresh_token"} <= set(found["grant_types_supported"])
    assert found["code_challenge_methods_supported"] == ["S256"]
    assert found["prompt_values_supported"] == ["login", "create"]
    assert found["account_management_uri"] == BASE + "/_mahalla/account"


@pytest.mark.parametrize("config", ["", f"public_baseurl: {BASE}/\noauth: {{enabled: false}}\n"])
def test_a_disabled_api_is_unrecognized(
    tmp_path: Path, sqlite_database: Database, config: str
) -> None:
    server = TestServer(tmp_path, sqlite_database, config)
    assert server.get("/_matrix/client/v1/auth_metadata").errcode == "M_UNRECOGNIZED"
    assert server.get("/_mahalla/oauth/authorize").errcode == "M_UNRECOGNIZED"
    for path in ("register", "token", "device", "revoke", "introspect"):
        answer = server.client.request("POST", f"/_mahalla/oauth/{path}", body=b"{}")
        assert (answer.status, answer.errcode) == (404, "M_UNRECOGNIZED")


def test_a_user_allows_a_client(program: Program, browser: Browser) -> None:
    browser.open(program.request())
    assert browser.path.startswith("/_mahalla/sign_in?next=")
    browser.send(name="alice", password="wonderland")
    assert "Allow Element X to use your account?" in browser.words
    assert "@alice:example.org" in browser.words
    assert "element.io" in browser.words
    assert (
        "form-action 'self' io.element.android:"
        in browser.answer.headers["content-security-policy"]
    )
    browser.send(program.path_of("authorization_endpoint"), button="allow")
    assert browser.location.startswith("io.element.android:/?code=")
    back = returned(browser)
    assert (back["state"], back["iss"]) == ("a state", BASE + "/")
    answer = program.exchange(back["code"])
    assert answer.status == 200, answer.body
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json["token_type"] == "Bearer"
    assert answer.json["expires_in"] == 300
    assert answer.json["scope"] == program.scope
    alice = program.take(answer)
    assert (alice.user_id, alice.device_id) == ("@alice:example.org", "ELEMENTX01")
    device = alice.get("/_matrix/client/v3/devices/ELEMENTX01").json
    assert device["display_name"] == "Element X"


def test_the_response_mode_decides_between_fragment_and_query(
    server: TestServer, browser: Browser
) -> None:
    web = {
        "client_uri": "https://app.example.com/",
        "redirect_uris": ["https://app.example.com/?no_universal_links=true"],
        "grant_types": ["authorization_code", "refresh_token"],
    }
    program = Program(server, web)
    program.ask(browser, response_mode="fragment")
    browser.send(program.path_of("authorization_endpoint"), button="allow")
    assert browser.location.startswith("https://app.example.com/?no_universal_links=true#code=")
    program.ask(browser, response_mode="query")
    browser.send(program.path_of("authorization_endpoint"), button="allow")
    assert browser.location.startswith("https://app.example.com/?no_universal_links=true&code=")


def test_stable_scopes_are_accepted(program: Program, browser: Browser) -> None:
    stable = "openid urn:matrix:client:api:* urn:matrix:client:device:STABLE1234"
    answer = program.exchange(program.code(browser, scope=stable))
    assert answer.json["scope"] == stable.removeprefix("openid ")
    assert program.take(answer).device_id == "STABLE1234"


def test_a_user_denies_a_client(program: Program, browser: Browser) -> None:
    program.ask(browser)
    browser.send(program.path_of("authorization_endpoint"), button="deny")
    back = returned(browser)
    assert (back["error"], back["state"]) == ("access_denied", "a state")
    assert "code" not in back


REFUSED = [
    ({"response_type": "token"}, "unsupported_response_type"),
    ({"response_type": ""}, "unsupported_response_type"),
    ({"response_mode": "form_post"}, "invalid_request"),
    ({"code_challenge": ""}, "invalid_request"),
    ({"code_challenge_method": ""}, "invalid_request"),
    ({"code_challenge_method": "plain"}, "invalid_request"),
    ({"code_challenge": "short"}, "invalid_request"),
    ({"code_challenge": challenge_of("x") + "="}, "invalid_request"),
    ({"scope": ""}, "invalid_scope"),
    ({"scope": "openid"}, "invalid_scope"),
    ({"scope": "urn:matrix:client:api:*"}, "invalid_scope"),
    ({"scope": "urn:matrix:client:device:ABCDEFGHIJ"}, "invalid_scope"),
    (
        {"scope": "urn:matrix:client:api:* urn:matrix:client:device:A urn:matrix:client:device:B"},
        "invalid_scope",
    ),
    ({"scope": 'urn:matrix:client:api:* urn:matrix:client:device:A"B'}, "invalid_scope"),
    ({"scope": "urn:matrix:client:api:* urn:matrix:client:device:" + "A" * 300}, "invalid_scope"),
    ({"scope": "urn:matrix:client:api:* urn:matrix:client:device:*"}, "invalid_scope"),
    ({"prompt": "none"}, "interaction_required"),
]


def test_an_error_redirects_users_of_the_client(program: Program, browser: Browser) -> None:
    program.sign_in(browser)
    for changed, error in REFUSED:
        browser.open(program.request(**changed))
        back = returned(browser)
        assert (back["error"], back["state"]) == (error, "a state"), changed


def check_shows_link(browser: Browser, error: str) -> None:
    """Check that there is no redirect, and that the page has a link that returns the error to the
    client."""
    assert browser.status == 400
    assert "location" not in browser.answer.headers
    link = browser.page.links["Continue to io.element.android:"]
    assert link.startswith(f"io.element.android:/?error={error}&")


def test_an_error_does_not_redirect_other_users(program: Program, browser: Browser) -> None:
    """Anybody can register a client. spec: RFC 9700 section 4.11.2"""
    for changed, error in REFUSED:
        browser.open(program.request(**changed))
        check_shows_link(browser, error)
    Program(program.server, {**METADATA, "client_name": "Other"}).sign_in(browser)
    program.server.register("bob")
    bob = Browser(program.server)
    bob.open(program.request())
    bob.send("/_mahalla/sign_in", name="bob", password="wonderland")
    bob.send(program.path_of("authorization_endpoint"), button="allow")
    assert program.take(program.exchange(returned(bob)["code"])).user_id == "@bob:example.org"
    for changed, error in REFUSED:
        browser.open(program.request(**changed))
        check_shows_link(browser, error)


def test_a_grant_that_the_client_did_not_register_is_refused(
    program: Program, browser: Browser
) -> None:
    by_code = Program(
        program.server,
        {**METADATA, "grant_types": ["urn:ietf:params:oauth:grant-type:device_code"]},
    )
    browser.open(by_code.request())
    check_shows_link(browser, "unauthorized_client")
    once = Program(program.server, {**METADATA, "grant_types": ["authorization_code"]})
    once.take(once.exchange(once.code(browser)))
    assert once.refresh().json["error"] == "unauthorized_client"


@pytest.mark.parametrize(
    "name", ["redirect_uri", "client_id", "scope", "state", "code_challenge", "response_mode"]
)
def test_a_repeated_parameter_does_not_redirect(
    program: Program, browser: Browser, name: str
) -> None:
    """spec: RFC 6749 section 3.1"""
    browser.open(f"{program.request(response_mode='query')}&{name}=")
    assert (browser.status, f"{name} occurs twice" in browser.words) == (400, True)


NOT_REDIRECTED = [
    {"client_id": ""},
    {"client_id": "unknown"},
    {"client_id": "x" * 4000},
    {"redirect_uri": ""},
    {"redirect_uri": "io.element.android:/other"},
    {"redirect_uri": "https://evil.example/"},
    {"redirect_uri": "io.element.android:/#"},
    {"state": "s" * 3000},
    {"state": "s" * 3000, "response_mode": "form_post"},
]


def test_an_unchecked_redirect_uri_is_not_followed(program: Program, browser: Browser) -> None:
    for changed in NOT_REDIRECTED:
        browser.open(program.request(**changed))
        assert "location" not in browser.answer.headers, changed
        assert browser.status == 400
        assert "This app cannot sign you in" in browser.words


def test_forms_of_other_sites_are_refused(program: Program, browser: Browser) -> None:
    program.ask(browser)
    form = next(
        form
        for form in browser.page.forms
        if form.action == program.path_of("authorization_endpoint")
    )
    stolen = {**form.fields, "decision": "allow", "form_token": "x"}
    browser.post(form.action, stolen)
    assert browser.status == 403
    assert "location" not in browser.answer.headers
    nobody = Browser(program.server)
    nobody.post(form.action, {**form.fields, "decision": "allow"})
    assert nobody.status == 403


def test_the_submitted_form_is_checked_again(program: Program, browser: Browser) -> None:
    program.ask(browser)
    browser.send(
        program.path_of("authorization_endpoint"),
        button="allow",
        redirect_uri="https://evil.example/",
    )
    assert browser.status == 400
    program.ask(browser)
    browser.send(program.path_of("authorization_endpoint"), button="allow", client_id="unknown")
    assert browser.status == 400


def test_an_expired_browser_session_signs_in_again(program: Program, browser: Browser) -> None:
    program.ask(browser)
    program.server.clock.advance(25 * 3600)
    browser.send(program.path_of("authorization_endpoint"), button="allow")
    assert browser.path.startswith("/_mahalla/sign_in?next=")


def test_another_user_signs_in_on_the_consent_page(program: Program, browser: Browser) -> None:
    program.server.register("bob", "builder")
    program.ask(browser)
    browser.send("/_mahalla/sign_out")
    browser.send("/_mahalla/sign_in", name="bob", password="builder")
    assert "@bob:example.org" in browser.words
    assert "Allow Element X to use your account?" in browser.words


def test_login_hint_prefills_the_user_name(program: Program, browser: Browser) -> None:
    browser.open(program.request(login_hint="mxid:@alice:example.org"))
    assert browser.page.forms[0].fields["name"] == "@alice:example.org"


def test_prompt_create_leads_to_the_registration(program: Program, browser: Browser) -> None:
    browser.open(program.request(prompt="create"))
    assert browser.path.startswith("/_mahalla/register?next=")
    browser.send("/_mahalla/register", name="carol", password="a", password_again="b")
    assert "The two passwords differ" in browser.words
    browser.send("/_mahalla/register", name="alice", password="a", password_again="a")
    assert "This name is taken" in browser.words
    browser.send(
        "/_mahalla/register", name="carol", password="christmas", password_again="christmas"
    )
    assert "Allow Element X to use your account?" in browser.words
    browser.send(program.path_of("authorization_endpoint"), button="allow")
    assert program.take(program.exchange(returned(browser)["code"])).user_id == "@carol:example.org"


def test_markup_in_client_names_is_escaped(server: TestServer, browser: Browser) -> None:
    named = {**METADATA, "client_name": "<b>Evil\u202e</b>\n'\"&"}
    program = Program(server, named)
    program.ask(browser)
    assert "<b>Evil" not in browser.text
    assert "\u202e" not in browser.text
    assert "&lt;b&gt;Evil&lt;/b&gt;" in browser.text


def test_a_code_is_bound_to_its_request(program: Program, browser: Browser) -> None:
    wrong = [
        {"code_verifier": "w" * 43},
        {"code_verifier": "v" * 42},
        {"redirect_uri": "io.element.android:/x"},
    ]
    for changed in wrong:
        code = program.code(browser)
        assert_refused(program.exchange(code, **changed))
        assert_refused(program.exchange(code))  # one attempt


def test_a_code_is_for_one_client(program: Program, browser: Browser) -> None:
    other = Program(program.server, {**METADATA, "client_name": "Other"})
    code = program.code(browser)
    assert_refused(program.exchange(code, client_id=other.client_id))
    assert_refused(
        program.exchange(program.code(browser), client_id="nobody"), "invalid_client", 401
    )


def test_a_code_that_is_used_twice_ends_the_session(program: Program, browser: Browser) -> None:
    code = program.code(browser)
    alice = program.take(program.exchange(code))
    assert_refused(program.exchange(code))
    assert alice.get(WHOAMI).errcode == "M_UNKNOWN_TOKEN"
    assert_refused(program.refresh())


def test_a_code_expires_after_two_minutes(program: Program, browser: Browser) -> None:
    code = program.code(browser)
    program.server.clock.advance(120)
    assert_refused(program.exchange(code))


def test_locking_the_account_ends_the_code(program: Program, browser: Browser) -> None:
    code = program.code(browser)
    users = program.server.app.user_data.accounts
    program.server.run(users.do_set_flags(UserID("@alice:example.org"), locked=True))
    program.server.run(users.do_set_flags(UserID("@alice:example.org"), locked=False))
    assert_refused(program.exchange(code))


def test_invalid_token_requests_are_refused(program: Program) -> None:
    assert_refused(program.token(), "invalid_request")
    assert_refused(program.token(grant_type="password"), "unsupported_grant_type")
    assert_refused(program.token(grant_type="authorization_code"), "invalid_request")
    assert_refused(program.exchange("unknown"))
    assert_refused(program.exchange("un\0known"), "invalid_request")
    assert_refused(program.form("token_endpoint", grant_type="refresh_token"), "invalid_request")
    path = program.path_of("token_endpoint")
    twice = program.server.client.request(
        "POST", path, body=b"client_id=a&client_id=b&grant_type=refresh_token"
    )
    assert_refused(twice, "invalid_request")
    for body in (b"\xff", b"a=%ff", b"&".join([b"a=b"] * 100), b""):
        assert_refused(program.server.client.request("POST", path, body=body), "invalid_request")
