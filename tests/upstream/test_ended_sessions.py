"""Pending upstream sign-ins end when the account's sessions end, and when the session at the
provider ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc.jwk import RSAKey

from federation.protocol.ids import UserID
from homeserver.services.upstream.ended_sessions import STORED_MS
from homeserver.services.upstream.oidc.tokens import LOGOUT_EVENT
from homeserver.web.sign_in import SIGN_IN_PATH, SIGN_OUT_PATH
from storage.engine.database import Database
from storage.login.browser_sessions import BrowserSessionStore
from storage.login.login_tokens import LoginTokenStore
from storage.upstream.ended_sessions import EndedProviderSessionStore
from tests.helpers.browser import Browser
from tests.helpers.oauth import Program, returned
from tests.helpers.openid import CONFIG, TEMPLATES, OpenIDProvider
from tests.helpers.server import TestServer
from tests.helpers.upstream import (
    ALICE,
    CLIENT,
    open_provider,
    post_logout_token,
    redeem,
    send_logout_token,
    sign_in,
)

USER = UserID("@alice:example.org")
GO_ON = "/_mahalla/upstream/client"
NAME = "/_mahalla/upstream/name"


@pytest.fixture
def server(tmp_path: Path, database: Database, provider: OpenIDProvider) -> TestServer:
    return TestServer(
        tmp_path,
        database,
        CONFIG + "  backchannel_logout_enabled: true\n" + TEMPLATES,
        web=provider,
    )


def change(server: TestServer) -> None:
    server.run(
        server.app.user_data.accounts.do_set_password(USER, "a new password", log_out_all=True)
    )


def log_out_everywhere(server: TestServer) -> None:
    server.run(server.app.accounts.sessions.do_log_out_everywhere(USER))


def lock(server: TestServer) -> None:
    server.run(server.app.user_data.accounts.do_set_flags(USER, locked=True))
    server.run(server.app.user_data.accounts.do_set_flags(USER, locked=False))


EVENTS = [change, log_out_everywhere, lock]


def end_session(server: TestServer, provider: OpenIDProvider, **claims: str) -> None:
    """Let the provider end a session."""
    assert send_logout_token(server, provider, **claims) == 200


def at_the_question(
    server: TestServer, provider: OpenIDProvider, browser: Browser | None = None
) -> Browser:
    """Return a browser at the page that asks whether to continue to the client."""
    browser = browser or Browser(server)
    browser.open(provider.sign_in(open_provider(browser), **ALICE, sid="p"))
    assert "Continue to" in browser.words
    return browser


def on_own_pages(
    server: TestServer, provider: OpenIDProvider, path: str = "/_mahalla/account"
) -> Browser:
    browser = Browser(server)
    browser.open(path)
    browser.follow("Town hall")
    browser.open(provider.sign_in(browser.location, **ALICE, sid="p"))
    return browser


def is_in(browser: Browser) -> bool:
    browser.open("/_mahalla/account")
    return not browser.path.startswith(SIGN_IN_PATH)


@pytest.mark.parametrize("event", EVENTS)
def test_the_consent_page_ends_with_the_accounts_sessions(
    server: TestServer, provider: OpenIDProvider, event: Callable[[TestServer], None]
) -> None:
    sign_in(server, provider, Browser(server))
    browser = at_the_question(server, provider)
    event(server)
    browser.send(GO_ON)
    assert (browser.status, "location" in browser.answer.headers) == (400, False)
    browser = at_the_question(server, provider)
    browser.send(GO_ON)
    assert redeem(server, browser).user_id == USER


def test_signing_out_ends_pending_flows(server: TestServer, provider: OpenIDProvider) -> None:
    browser = on_own_pages(server, provider)
    form = next(form for form in browser.page.forms if form.action == SIGN_OUT_PATH)
    at_the_question(server, provider, browser)
    waiting = next(form for form in browser.page.forms if form.action == GO_ON)
    browser.post(SIGN_OUT_PATH, form.fields)
    assert not is_in(browser)
    browser.post(GO_ON, waiting.fields)
    assert (browser.status, "location" in browser.answer.headers) == (400, False)


def test_the_consent_page_ends_with_the_session_at_the_provider(
    server: TestServer, provider: OpenIDProvider
) -> None:
    end_session(server, provider, sid="p", sub="2")  # of another person
    browser = at_the_question(server, provider)
    end_session(server, provider, sid="other")
    browser.send(GO_ON)
    assert redeem(server, browser).user_id == USER
    browser = at_the_question(server, provider)
    end_session(server, provider, sid="p", sub="1")
    browser.send(GO_ON)
    assert browser.status == 400


def test_a_later_sign_in_with_the_same_session_name_stays(
    server: TestServer, provider: OpenIDProvider
) -> None:
    browser = on_own_pages(server, provider)
    left = open_provider(late := Browser(server))
    server.clock.advance(1)
    provider.now += 1
    end_session(server, provider, sid="p", sub="1")
    assert not is_in(browser)
    server.clock.advance(1)
    provider.now += 1
    assert is_in(on_own_pages(server, provider))
    browser = at_the_question(server, provider)
    browser.send(GO_ON)
    assert redeem(server, browser).user_id == USER
    late.open(provider.sign_in(left, **ALICE, sid="p"))
    assert late.status == 400


@pytest.mark.parametrize("claims", [{"sub": "1"}, {"sub": "1", "sid": "p"}])
def test_a_browser_at_the_provider_is_refused_after_its_session_ended(
    server: TestServer, provider: OpenIDProvider, claims: dict[str, str]
) -> None:
    sign_in(server, provider, Browser(server))
    places = [open_provider(browser := Browser(server)), open_provider(stranger := Browser(server))]
    server.clock.advance(1)
    provider.now += 1
    end_session(server, provider, **claims)
    browser.open(provider.sign_in(places[0], **ALICE, sid="p"))
    assert browser.status == 400
    stranger.open(
        provider.sign_in(places[1], **{**ALICE, "sub": "2", "preferred_username": "bob"}, sid="q")
    )
    assert stranger.status == 200
    server.clock.advance(1)
    provider.now += 1
    at_the_question(server, provider)


def test_invalid_logout_tokens_do_not_refetch_the_keys(
    server: TestServer, provider: OpenIDProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(server, provider, Browser(server))
    server.clock.advance(61)
    provider.now += 61
    asked: list[str] = []
    request = OpenIDProvider.request

    async def counted(
        self: OpenIDProvider, method: str, url: str, *args: Any, **options: Any
    ) -> Any:
        asked.append(url)
        return await request(self, method, url, *args, **options)

    monkeypatch.setattr(OpenIDProvider, "request", counted)
    stranger = OpenIDProvider()
    stranger.key, stranger.now = RSAKey.generate_key(2048, parameters={"kid": "one"}), provider.now
    token = stranger.sign(stranger.claims(sub="1", events={LOGOUT_EVENT: {}}))
    provider.is_down = True
    for _ in range(5):
        assert post_logout_token(server, token) == 400
    assert len(asked) == 1
    end_session(server, provider, sub="1")  # cached keys stay valid meanwhile


@pytest.mark.parametrize("ended", [{"sid": "p"}, {"sub": "1"}])
def test_a_name_chosen_after_the_logout_is_refused(
    tmp_path: Path, database: Database, provider: OpenIDProvider, ended: dict[str, str]
) -> None:
    further = CONFIG + "  backchannel_logout_enabled: true\n"
    server = TestServer(tmp_path, database, further, web=provider)
    browser = Browser(server)
    browser.open(provider.sign_in(open_provider(browser), sub="1", sid="p"))
    end_session(server, provider, **ended)
    browser.send(NAME, username="alice")
    assert browser.status == 400
    assert server.run(server.app.accounts.stores.accounts.get_accounts([USER])) == {}


def test_a_login_token_that_is_being_redeemed_is_refused(
    server: TestServer, provider: OpenIDProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = at_the_question(server, provider)
    browser.send(GO_ON)
    take = LoginTokenStore.take_login_token

    async def ends_after(self: LoginTokenStore, token_hash: bytes, now: int) -> Any:
        row = await take(self, token_hash, now)
        monkeypatch.undo()
        end_session(server, provider, sid="p")
        return row

    monkeypatch.setattr(LoginTokenStore, "take_login_token", ends_after)
    token = parse_qs(urlsplit(browser.location).query)["loginToken"][0]
    assert (
        server.post("/_matrix/client/v3/login", {"type": "m.login.token", "token": token}).status
        == 403
    )


def test_a_callback_that_is_being_handled_is_refused(
    server: TestServer, provider: OpenIDProvider
) -> None:
    browser = on_own_pages(server, provider)
    assert is_in(browser)
    provider.change = lambda _: end_session(server, provider, sid="p")
    assert not is_in(on_own_pages(server, provider))
    late = Browser(server)
    late.open(provider.sign_in(open_provider(late), **ALICE, sid="p"))
    assert late.status == 400
    provider.change = lambda _: None
    server.clock.advance(STORED_MS / 1000 + 1)
    provider.now += STORED_MS // 1000 + 1
    ended, now = EndedProviderSessionStore(server.app.database), int(server.clock.seconds()) * 1000
    assert server.run(ended.remove_old(now - STORED_MS, 10)) == 1
    assert is_in(on_own_pages(server, provider))


def ending_meanwhile(monkeypatch: pytest.MonkeyPatch, event: Callable[[], object]) -> None:
    """Run a change right after the browser session is read the next time."""
    read = BrowserSessionStore.get_browser_session

    async def ends_after(self: BrowserSessionStore, token_hash: bytes, now: int) -> Any:
        row = await read(self, token_hash, now)
        monkeypatch.undo()
        event()
        return row

    monkeypatch.setattr(BrowserSessionStore, "get_browser_session", ends_after)


def test_an_authorization_in_progress_is_refused(
    server: TestServer, provider: OpenIDProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Program(server)
    browser = on_own_pages(server, provider, desk.request())
    ending_meanwhile(monkeypatch, lambda: end_session(server, provider, sid="p"))
    browser.send(desk.path_of("authorization_endpoint"), button="allow")
    assert browser.path.startswith(SIGN_IN_PATH)


def test_a_logout_on_another_node_is_seen(
    tmp_path: Path,
    database: Database,
    server: TestServer,
    provider: OpenIDProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = TestServer(
        folder, database, CONFIG + "  backchannel_logout_enabled: true\n" + TEMPLATES, web=provider
    )
    browser = at_the_question(server, provider)
    end_session(other, provider, sid="p")
    browser.send(GO_ON)
    assert browser.status == 400
    desk = Program(server)
    browser = Browser(server)
    browser.open(desk.request())
    browser.follow("Town hall")
    browser.open(provider.sign_in(browser.location, **ALICE, sid="q"))
    ending_meanwhile(monkeypatch, lambda: end_session(other, provider, sid="q"))
    browser.send(desk.path_of("authorization_endpoint"), button="allow")
    assert browser.path.startswith(SIGN_IN_PATH)


def test_an_sso_in_progress_is_refused(
    server: TestServer, provider: OpenIDProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = on_own_pages(server, provider, f"/_mahalla/sso?redirectUrl={CLIENT}")
    ending_meanwhile(monkeypatch, lambda: end_session(server, provider, sid="p"))
    browser.send("/_mahalla/sso")
    assert (browser.status, "location" in browser.answer.headers) == (403, False)


def test_a_device_decision_in_progress_is_refused(
    server: TestServer, provider: OpenIDProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    tv = Program(server, device_id="TV00000001")
    asked = tv.form("device_authorization_endpoint", client_id=tv.client_id, scope=tv.scope).json
    browser = on_own_pages(server, provider, f"/_mahalla/link?user_code={asked['user_code']}")
    ending_meanwhile(monkeypatch, lambda: end_session(server, provider, sid="p"))
    browser.send("/_mahalla/link", button="allow")
    assert browser.path.startswith(SIGN_IN_PATH)
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    assert (
        tv.token(grant_type=grant, device_code=asked["device_code"]).json["error"]
        == "authorization_pending"
    )


def test_a_browser_that_signed_out_meanwhile_allows_no_client(
    server: TestServer, provider: OpenIDProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Program(server)
    browser = on_own_pages(server, provider, desk.request())
    form = next(form for form in browser.page.forms if form.action == SIGN_OUT_PATH)
    other = Browser(server)
    other.cookies = dict(browser.cookies)  # another tab
    ending_meanwhile(monkeypatch, lambda: other.post(SIGN_OUT_PATH, form.fields))
    browser.send(desk.path_of("authorization_endpoint"), button="allow")
    assert browser.path.startswith(SIGN_IN_PATH)


def test_a_browser_that_stays_signed_in_allows_clients(
    server: TestServer, provider: OpenIDProvider
) -> None:
    desk = Program(server)
    browser = on_own_pages(server, provider, desk.request())
    end_session(server, provider, sid="q")
    browser.send(desk.path_of("authorization_endpoint"), button="allow")
    assert desk.take(desk.exchange(returned(browser)["code"])).user_id == USER
