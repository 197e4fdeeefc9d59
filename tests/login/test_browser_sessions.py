"""Browser sessions of the server's own pages: cookies, CSRF, redirects, end of a session."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from federation.api.request import RequestContext
from federation.protocol.ids import UserID
from federation.protocol.signing import SigningKey
from homeserver.services.login.browser_sessions import BrowserSession
from homeserver.services.login.cookies import Cookies
from homeserver.services.login.provider_buttons import ProviderButton, ProviderButtons
from homeserver.services.pages.local_paths import local_path_or
from homeserver.web.forms import TOKEN_FIELD
from homeserver.web.sign_in import SIGN_IN_PATH, SIGN_OUT_PATH, SignInPage, sign_in_link
from storage.engine.database import Database
from storage.login.browser_sessions import BrowserSessionStore
from tests.helpers.browser import Browser
from tests.helpers.http import Answer
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User

HTTPS = "public_baseurl: https://matrix.example.org/\n"
FOREIGN_PATHS = [
    "",
    "a",
    "//evil.example",
    "/\\evil.example",
    "\\/evil.example",
    "https://evil.example/",
    "/\t/evil.example",
    "/a\\b",
    " /a",
    "/a b",
    "/a\r\nSet-Cookie: b",
    "javascript:alert(1)",
    "/" + "a" * 5000,
    "/\u2028a",
]
KEY = SigningKey("a", b"k" * 32)
PLAIN = RequestContext("1", "GET", b"/", "::1", {})
WAYS_OUT = ["password", "everywhere", "locked", "deactivated", "a day"]


def context_of(browser: Browser) -> RequestContext:
    return RequestContext("1", "GET", b"/", "127.0.0.1", {}, cookies=tuple(browser.cookies.items()))


def signed_in(browser: Browser) -> BrowserSession | None:
    """Return the session of the browser, as pages find it."""
    sessions = browser.server.app.pages.sessions
    return browser.server.run(sessions.get(context_of(browser)))


def sign_in(browser: Browser, name: str = "alice", password: str = "wonderland") -> None:
    browser.open(sign_in_link("/"))
    browser.send(name=name, password=password)


def test_a_user_signs_in_and_out(server: TestServer) -> None:
    alice = server.register("alice")
    browser = Browser(server)
    browser.open(sign_in_link("/?from=page"))
    before = dict(browser.cookies)
    browser.send(name="alice", password="wonderland")
    assert (browser.status, browser.path) == (200, "/?from=page")
    found = signed_in(browser)
    assert found is not None
    assert (found.user_id, found.authenticated_ts) == (
        alice.user_id,
        int(server.clock.seconds() * 1000),
    )
    assert "mahalla_session" not in before
    browser.open(SIGN_IN_PATH)
    assert browser.path == "/_mahalla/account"  # redirected at once
    old = dict(browser.cookies)
    token = server.app.pages.forms.token(context_of(browser)).text
    browser.post(SIGN_OUT_PATH, {TOKEN_FIELD: token})
    assert signed_in(browser) is None
    browser.cookies = old
    assert signed_in(browser) is None  # the old cookie is invalid


def test_names_are_accepted_as_people_type_them(server: TestServer) -> None:
    server.register("alice")
    for name in ("alice", "ALICE", "@alice:example.org", " alice "):
        browser = Browser(server)
        sign_in(browser, name)
        assert signed_in(browser) is not None


def test_a_wrong_password_is_reported_in_the_language_of_the_reader(server: TestServer) -> None:
    server.register("alice")
    browser = Browser(server, languages="uz")
    sign_in(browser, password="wrong")
    assert browser.status == 403
    assert "Nom yoki parol noto‘g‘ri." in browser.words
    assert browser.page.forms[0].fields["name"] == "alice"
    assert "wrong" not in browser.text
    assert signed_in(browser) is None


def test_too_many_attempts_are_refused_with_the_time_to_wait(
    tmp_path: Path, sqlite_database: Database
) -> None:
    limits = "rc_login: {failed_attempts: {per_second: 0.01, burst_count: 2}}\n"
    server = TestServer(tmp_path, sqlite_database, limits)
    server.register("alice")
    browser = Browser(server)
    for _ in range(2):
        sign_in(browser, password="wrong")
    sign_in(browser)
    assert browser.status == 429
    assert "Try again in 2 min" in browser.words


def test_a_form_of_another_site_is_refused(server: TestServer) -> None:
    server.register("alice")
    browser, other = Browser(server), Browser(server)
    fields = {"name": "alice", "password": "wonderland"}
    assert browser.post(SIGN_IN_PATH, fields).status == 403
    other.open(SIGN_IN_PATH)
    stolen = other.page.forms[0].fields[TOKEN_FIELD]
    browser.open(SIGN_IN_PATH)
    assert browser.post(SIGN_IN_PATH, {**fields, TOKEN_FIELD: stolen}).status == 403
    assert signed_in(browser) is None
    sign_in(browser)
    assert browser.post(SIGN_OUT_PATH, {TOKEN_FIELD: stolen}).status == 403
    assert signed_in(browser) is not None


def test_broken_forms_are_refused(server: TestServer) -> None:
    browser = Browser(server)
    browser.open(SIGN_IN_PATH)
    browser.request("POST", SIGN_IN_PATH, b"\xff\xfe=%ff")
    assert browser.status == 403
    browser.request("POST", SIGN_IN_PATH, b"a=b&" * 1000)
    assert browser.status == 403


def test_cookies_are_limited_to_this_host(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, HTTPS)
    server.register("alice")
    browser = Browser(server)
    sign_in(browser)
    assert {cookie.partition("=")[0] for cookie in browser.set_cookies} == {
        "__Host-mahalla_session",
        "__Host-mahalla_visitor",
    }
    for cookie in browser.set_cookies:
        assert "; Path=/; HttpOnly; SameSite=Lax; Secure" in cookie
        assert "Domain" not in cookie
    page = Browser(server).open(SIGN_IN_PATH)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    # a cookie set by a sibling host is ignored
    browser.cookies["mahalla_session"] = browser.cookies.pop("__Host-mahalla_session")
    assert signed_in(browser) is None


def test_a_sign_in_replaces_a_planted_session(server: TestServer) -> None:
    server.register("alice")
    server.register("mallory")
    mallory = Browser(server)
    sign_in(mallory, "mallory")
    planted = dict(mallory.cookies)
    alice = Browser(server)
    alice.open(SIGN_IN_PATH)
    alice.cookies.update(planted)
    cookie = server.run(
        server.app.pages.sessions.do_begin(UserID("@alice:example.org"), context_of(alice), 0)
    )
    assert cookie.partition("=")[2].partition(";")[0] != planted["mahalla_session"]
    assert signed_in(mallory) is None


@pytest.mark.parametrize("way", WAYS_OUT)
def test_a_session_ends_with_its_account_or_password(server: TestServer, way: str) -> None:
    alice = server.register("alice")
    browser = Browser(server)
    sign_in(browser)
    _end(server, alice, way)
    assert signed_in(browser) is None
    if way == "locked":
        server.run(server.app.user_data.accounts.do_set_flags(alice.user_id, locked=False))
        assert signed_in(browser) is None
    if way in ("password", "a day"):
        server.clock.advance(1)
        assert server.run(server.app.pages.sessions.do_sweep(10)) == (1 if way == "a day" else 0)


def _end(server: TestServer, alice: User, way: str) -> None:
    proof = password_auth("alice")
    match way:
        case "password":
            body = {"new_password": "looking glass", "auth": proof}
            assert alice.post("/_matrix/client/v3/account/password", body).status == 200
        case "everywhere":
            assert alice.post("/_matrix/client/v3/logout/all").status == 200
        case "locked":
            server.run(server.app.user_data.accounts.do_set_flags(alice.user_id, locked=True))
        case "deactivated":
            assert (
                alice.post("/_matrix/client/v3/account/deactivate", {"auth": proof}).status == 200
            )
        case _:
            server.clock.advance(24 * 3600)


@pytest.mark.parametrize("path", ["/", "/_mahalla/account?action=a&b=%2f", "/a//b", "/a?next=//b"])
def test_paths_of_this_server_are_accepted(path: str) -> None:
    assert local_path_or(path, "/home") == path


@pytest.mark.parametrize("path", FOREIGN_PATHS)
def test_paths_of_other_sites_are_replaced(path: str) -> None:
    assert local_path_or(path, "/home") == "/home"


def test_a_sign_in_does_not_redirect_to_other_sites(server: TestServer) -> None:
    server.register("alice")
    for path in FOREIGN_PATHS:
        browser = Browser(server)
        browser.open(sign_in_link(path[:3000]))
        browser.send(name="alice", password="wonderland", next=path)
        assert (browser.status, browser.path) == (200, "/_mahalla/account")


class Ministry:
    """A provider with one sign-in button."""

    def buttons(self, next_path: str, *, reauthenticate: bool) -> Sequence[ProviderButton]:
        return [
            ProviderButton(
                "Ministry <of> Tea", f"/_mahalla/tea?next={next_path}", "/_mahalla/tea.png"
            )
        ]


def test_providers_have_buttons(server: TestServer) -> None:
    pages = server.app.pages
    page = SignInPage(
        pages=pages.pages,
        forms=pages.forms,
        sign_in=server.app.login.sign_in,
        registration=server.app.login.registration,
        choices=ProviderButtons([Ministry()]),
    )
    browser = Browser(server)
    response = page.make(context_of(browser), "/x")
    assert isinstance(response.body, bytes)
    browser.answer = Answer(response.status, response.headers, response.body)
    assert browser.page.links["Ministry <of> Tea"] == "/_mahalla/tea?next=/x"
    assert 'src="/_mahalla/tea.png"' in browser.text


def test_without_public_baseurl_the_request_decides_whether_cookies_are_secure() -> None:
    cookies = Cookies(public_baseurl=None, key=KEY)
    secure, plain = (
        RequestContext("1", "GET", b"/", "::1", {}, is_secure=is_secure)
        for is_secure in (True, False)
    )
    assert cookies.make(secure, "a", "b" * 16).startswith("__Host-a=")
    assert cookies.find(with_cookies(plain, cookies.make(plain, "b", "c" * 20)), "b") == "c" * 20
    assert cookies.find(with_cookies(plain, cookies.make(secure, "b", "c" * 20)), "b") is None
    assert cookies.find(with_cookies(plain, "a=<script>"), "a") is None


def with_cookies(context: RequestContext, *headers: str) -> RequestContext:
    """Return the context of a request with the cookies that these headers set."""
    pairs = [header.partition(";")[0].partition("=") for header in headers]
    return replace(context, cookies=tuple((name, value) for name, _, value in pairs))


def test_only_cookies_signed_by_this_server_are_accepted() -> None:
    cookies = Cookies(public_baseurl=None, key=KEY)
    header = cookies.make(PLAIN, "a", "b" * 20)
    name, _, value = header.partition(";")[0].partition("=")
    assert cookies.find(with_cookies(PLAIN, header), "a") == "b" * 20
    for number, character in enumerate(value):
        changed = value[:number] + ("x" if character != "x" else "y") + value[number + 1 :]
        # the last character has two unused bits, which are compared too
        assert cookies.find(with_cookies(PLAIN, f"{name}={changed}"), "a") is None, number
    content, _, signature = value.partition(".")
    for forged in (
        content,
        f"{content}.",
        f".{signature}",
        f"{content}.{signature}=",
        f"{content}.{signature}{signature}",
    ):
        assert cookies.find(with_cookies(PLAIN, f"a={forged}"), "a") is None, forged
    # the signature of another cookie, and of another key (a replaced one, for example)
    assert cookies.find(with_cookies(PLAIN, f"c={value}"), "c") is None
    assert (
        Cookies(public_baseurl=None, key=SigningKey("a", b"l" * 32)).find(
            with_cookies(PLAIN, header), "a"
        )
        is None
    )
    # a forged cookie of the same name, set by another host of the domain, hides nothing
    assert cookies.find(with_cookies(PLAIN, f"a={'x' * 20}.{signature}", header), "a") == "b" * 20


def test_a_session_with_an_unsigned_cookie_has_to_sign_in_again(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a cookie is refused without a look-up."""
    server.register("alice")
    browser = Browser(server)
    sign_in(browser)
    signed = browser.cookies["mahalla_session"]
    browser.cookies["mahalla_session"] = signed.partition(".")[0]

    def fail(*_: object) -> None:
        raise AssertionError("the session was looked up")

    with monkeypatch.context() as patch:
        patch.setattr(BrowserSessionStore, "get_browser_session_in", fail)
        browser.open("/_mahalla/account")
    assert browser.status == 200
    assert browser.path.startswith(SIGN_IN_PATH)
    browser.send(SIGN_IN_PATH, name="alice", password="wonderland")
    assert (browser.status, browser.path) == (200, "/_mahalla/account")
    assert browser.cookies["mahalla_session"] != signed
