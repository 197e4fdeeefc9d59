"""Checks of an OpenID provider's tokens, metadata, keys, claims and logout tokens."""

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec
import pytest
from joserfc import jwt
from joserfc.jwk import OKPKey, RSAKey

from federation.http_client.client import WebResponse
from federation.protocol.ids import UserID
from homeserver.services.upstream.oidc.tokens import LOGOUT_EVENT
from storage.engine.database import Database
from tests.helpers.audit_records import audit_records
from tests.helpers.browser import Browser
from tests.helpers.images import picture
from tests.helpers.logins import password_auth
from tests.helpers.oauth import Program, returned
from tests.helpers.openid import CALLBACK, CONFIG, ISSUER, TEMPLATES, OpenIDProvider
from tests.helpers.server import TestServer, User
from tests.helpers.upstream import (
    ALICE,
    CLIENT,
    REDIRECT,
    is_signed_in,
    open_provider,
    post_logout_token,
    send_logout_token,
    sign_in,
)

FAILED = "sign-in service is not working"


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider) -> TestServer:
    return TestServer(tmp_path, sqlite_database, CONFIG + TEMPLATES, web=provider)


def come_back(provider: OpenIDProvider, server: TestServer, **claims: Any) -> Browser:
    """Return a browser that went to the provider and returned."""
    browser = Browser(server)
    browser.open(provider.sign_in(open_provider(browser), **(claims or ALICE)))
    return browser


def without_signature(claims: dict[str, Any]) -> str:
    parts = (b'{"alg":"none"}', msgspec.json.encode(claims), b"")
    return ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def with_public_key_as_secret(provider: OpenIDProvider) -> Callable[[dict[str, Any]], str]:
    assert isinstance(provider.key, RSAKey)
    secret = provider.key.as_pem(private=False)

    def forge(claims: dict[str, Any]) -> str:
        parts = (b'{"alg":"HS256"}', msgspec.json.encode(claims))
        signed = ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
        signature = (
            urlsafe_b64encode(hmac.digest(secret, signed.encode(), "sha256")).rstrip(b"=").decode()
        )
        return f"{signed}.{signature}"

    return forge


WRONG: dict[str, dict[str, Any]] = {
    "of another issuer": {"iss": "https://evil.example"},
    "for another client": {"aud": "other"},
    "for nobody": {"aud": []},
    "issued to another client": {"aud": ["matrix", "other"], "azp": "other"},
    "expired": {"exp": 1_600_000_000},
    "for ever": {"exp": None},
    "until a text": {"exp": "2100"},
    "of the future": {"iat": 2_000_000_000},
    "of another sign-in": {"nonce": "another"},
    "of no sign-in": {"nonce": None},
    "of nobody": {"sub": None},
    "of a number": {"sub": 1},
}


def test_invalid_id_tokens_are_refused(server: TestServer, provider: OpenIDProvider) -> None:
    for name, change in WRONG.items():
        provider.change = lambda claims, change=change: claims.update(change)  # type: ignore[misc]
        browser = come_back(provider, server)
        assert (browser.status, FAILED in browser.words) == (403, True), name


def test_invalid_signatures_are_refused(server: TestServer, provider: OpenIDProvider) -> None:
    other = RSAKey.generate_key(2048, parameters={"kid": "one"})
    forgeries: tuple[Callable[[dict[str, Any]], str], ...] = (
        without_signature,
        with_public_key_as_secret(provider),
        lambda claims: jwt.encode({"alg": "RS256", "kid": "one"}, claims, other),
        lambda claims: provider.sign(claims)[:-4] + "AAAA",
        lambda _: "not a token",
        lambda _: "",
    )
    for forgery in forgeries:
        provider.make_token = forgery
        assert FAILED in come_back(provider, server).words
    provider.make_token = provider.sign
    assert "Continue to" in come_back(provider, server).words


def test_another_algorithm_is_refused(server: TestServer, provider: OpenIDProvider) -> None:
    provider.algorithm = "PS256"
    assert FAILED in come_back(provider, server).words


def test_the_configured_algorithm_is_accepted(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider
) -> None:
    further = CONFIG + "  id_token_signing_alg_values_supported: [Ed25519]\n" + TEMPLATES
    server = TestServer(tmp_path, sqlite_database, further, web=provider)
    assert FAILED in come_back(provider, server).words  # the provider signs with RSA
    provider.key, provider.algorithm = (
        OKPKey.generate_key("Ed25519", parameters={"kid": "two"}),
        "Ed25519",
    )
    server.clock.advance(61)
    provider.now += 61
    assert "Continue to" in come_back(provider, server).words


def test_unknown_keys_are_fetched_at_most_once_a_minute(
    server: TestServer, provider: OpenIDProvider
) -> None:
    assert "Continue to" in come_back(provider, server).words
    provider.key = RSAKey.generate_key(2048, parameters={"kid": "two"})
    assert FAILED in come_back(provider, server).words
    server.clock.advance(61)
    provider.now += 61
    assert "Continue to" in come_back(provider, server).words
    assert provider.asked.count("/keys") == 2


def test_invalid_callbacks_are_refused(server: TestServer, provider: OpenIDProvider) -> None:
    browser = Browser(server)
    back = provider.sign_in(open_provider(browser), **ALICE)
    state = parse_qs(urlsplit(back).query)["state"][0]
    for query in ({"code": "code0"}, {"code": "code0", "state": "x" * 24}, {"state": "\u00e4"}):
        browser.open(f"{CALLBACK}?{urlencode(query)}")
        assert browser.status == 400
    for query, text in (
        ({"state": state, "code": "wrong"}, FAILED),
        ({"code": "code0", "state": state}, "was already used"),
    ):
        browser.open(f"{CALLBACK}?{urlencode(query)}")
        assert text in browser.words


def test_a_cancelled_sign_in_shows_a_page(server: TestServer) -> None:
    browser = Browser(server)
    state = parse_qs(urlsplit(open_provider(browser)).query)["state"][0]
    browser.open(f"{CALLBACK}?{urlencode({'error': 'access_denied', 'state': state})}")
    assert "You did not sign in there" in browser.words


def test_a_callback_from_another_issuer_is_refused(
    server: TestServer, provider: OpenIDProvider
) -> None:
    provider.document["authorization_response_iss_parameter_supported"] = True
    for iss, text in (
        ("", FAILED),
        ("&iss=https://evil.example", FAILED),
        (f"&iss={ISSUER}", "Continue to"),
    ):
        browser = Browser(server)
        browser.open(provider.sign_in(open_provider(browser), **ALICE) + iss)
        assert text in browser.words


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://login.example.com/token"},
        {"jwks_uri": 5},
    ],
)
def test_untrusted_discovery_documents_are_refused(
    server: TestServer, provider: OpenIDProvider, change: dict[str, object]
) -> None:
    provider.document |= change
    browser = Browser(server)
    browser.open(f"{REDIRECT}/oidc-town?redirectUrl={CLIENT}")
    assert (browser.status, FAILED in browser.words) == (403, True)


@pytest.mark.parametrize("body", [b"<html>", b'{"issuer": "\xff"}', b'{"more": ' + b"[" * 20_000])
def test_malformed_discovery_documents_are_refused(
    server: TestServer, provider: OpenIDProvider, body: bytes
) -> None:
    address = f"{ISSUER}/.well-known/openid-configuration"
    provider.pictures[address] = WebResponse(
        address, 200, {"content-type": "application/json"}, body
    )
    browser = Browser(server)
    browser.open(f"{REDIRECT}/oidc-town?redirectUrl={CLIENT}")
    assert (browser.status, FAILED in browser.words) == (403, True)


def test_an_unavailable_provider_shows_a_page(server: TestServer, provider: OpenIDProvider) -> None:
    browser = Browser(server)
    back = provider.sign_in(open_provider(browser), **ALICE)
    provider.is_down = True
    browser.open(back)
    assert FAILED in browser.words


def test_the_client_authenticates_and_uses_pkce(
    server: TestServer, provider: OpenIDProvider
) -> None:
    where = parse_qs(urlsplit(open_provider(Browser(server))).query)
    assert where["code_challenge_method"] == ["S256"]
    assert len(where["code_challenge"][0]) == 43
    assert where["scope"] == ["openid profile"]
    come_back(provider, server)
    assert (
        provider.headers["Authorization"] == "Basic bWF0cml4Om9wZW4rc2VzYW1l"
    )  # matrix:open+sesame
    provider.document["code_challenge_methods_supported"] = []
    server.clock.advance(3601)
    assert "code_challenge" not in open_provider(Browser(server))


def test_claims_are_read_from_the_userinfo_endpoint(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider
) -> None:
    further = CONFIG + "  user_profile_method: userinfo_endpoint\n" + TEMPLATES
    server = TestServer(tmp_path, sqlite_database, further, web=provider)
    provider.userinfo = {**ALICE, "preferred_username": "alicia"}
    assert "@alicia:example.org" in come_back(provider, server).words
    provider.userinfo = {**ALICE, "sub": "2"}
    assert FAILED in come_back(provider, server).words


def test_only_members_of_required_groups_sign_in(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider
) -> None:
    further = (
        CONFIG
        + "  attribute_requirements: [{attribute: groups, one_of: [staff, guests]}]\n"
        + TEMPLATES
    )
    server = TestServer(tmp_path, sqlite_database, further, web=provider)
    for groups, text in (
        (None, "not allowed to use this server"),
        (["pupils"], "not allowed to use this server"),
        (["x", "staff"], "Continue to"),
    ):
        assert text in come_back(provider, server, **ALICE, groups=groups).words
    assert audit_records(server)[0] == ("registered", None)
    assert ("linked", "oidc-town") in audit_records(server)
    assert (
        "not allowed to use this server"
        in come_back(provider, server, **ALICE, groups=["pupils"]).words
    )
    assert audit_records(server)[-1] == ("sign_in_refused", "not_allowed")


def test_groups_are_read_by_a_template(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider
) -> None:
    template = "{{ user.realm_access.roles | map(attribute='name') | join('\\n') }}"
    further = (
        CONFIG
        + "  attribute_requirements: [{attribute: groups, value: staff}]\n"
        + TEMPLATES
        + f'      groups_template: "{template}"\n'
    )
    server = TestServer(tmp_path, sqlite_database, further, web=provider)
    for roles, text in (
        (None, "not allowed to use this server"),
        ([], "not allowed to use this server"),
        ([{"name": "not staff"}, {"name": "pupils"}], "not allowed to use this server"),
        (7, FAILED),
        ([{"name": "pupils"}, {"name": "staff"}], "Continue to"),
    ):
        realm = {} if roles is None else {"realm_access": {"roles": roles}}
        # the claim of the same name is ignored
        assert text in come_back(provider, server, **ALICE, groups=["staff"], **realm).words, roles


def test_malformed_claims_cause_no_500(server: TestServer, provider: OpenIDProvider) -> None:
    name = "Ünal \u202e& <b>co</b>"
    browser = come_back(
        provider, server, sub="9", preferred_username=name, name=["a"], email=7, picture={}
    )
    assert "@=c3=bcnal=20=e2=80=ae=26=20=3cb=3eco=3c/b=3e:example.org" in browser.words
    assert FAILED in come_back(provider, server, sub="x" * 600).words


def test_unusual_claims_are_accepted(
    tmp_path: Path, postgres_database: Database, provider: OpenIDProvider
) -> None:
    server = TestServer(tmp_path, postgres_database, CONFIG + TEMPLATES, web=provider)
    for strange in (
        {"sid": "".join(chr(ord("a") + at % 23) for at in range(5000))},
        {"sid": "a\0"},
        {"sid": ["a"]},
        {"auth_time": float("-inf")},
        {"auth_time": float("nan")},
        {"auth_time": True},
    ):
        assert sign_in(server, provider, Browser(server), **strange).user_id == "@alice:example.org"


def test_an_unverified_email_is_not_imported(server: TestServer, provider: OpenIDProvider) -> None:
    provider.change = lambda claims: claims.update(email_verified=False)
    alice = sign_in(server, provider, Browser(server))
    assert alice.get("/_matrix/client/v3/account/3pid").json["threepids"] == []


def test_an_avatar_is_imported_once(server: TestServer, provider: OpenIDProvider) -> None:
    url = "https://pictures.example/alice.png"
    provider.pictures[url] = WebResponse(url, 200, {"content-type": "image/png"}, picture(8, 8))
    alice = sign_in(server, provider, Browser(server), picture=url)
    profile = server.get(f"/_matrix/client/v3/profile/{alice.user_id}").json
    media = profile["avatar_url"].removeprefix("mxc://")
    assert alice.get(f"/_matrix/client/v1/media/download/{media}").body == picture(8, 8)
    script = "https://pictures.example/script"
    provider.pictures[script] = WebResponse(script, 200, {"content-type": "text/html"}, b"<script>")
    bob = sign_in(
        server, provider, Browser(server), sub="2", preferred_username="bob", picture=script
    )
    assert "avatar_url" not in server.get(f"/_matrix/client/v3/profile/{bob.user_id}").json


# Back-channel logout.


@pytest.fixture
def linked(tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider) -> TestServer:
    return TestServer(
        tmp_path,
        sqlite_database,
        CONFIG + "  backchannel_logout_enabled: true\n" + TEMPLATES,
        web=provider,
    )


def test_a_backchannel_logout_ends_the_session(
    linked: TestServer, provider: OpenIDProvider
) -> None:
    phone = sign_in(linked, provider, Browser(linked), sid="p")
    desk = sign_in(linked, provider, Browser(linked), sid="d")
    other = sign_in(linked, provider, Browser(linked), sub="2", preferred_username="bob", sid="p2")
    event: dict[str, object] = {LOGOUT_EVENT: {}}
    wrong = (
        provider.claims(sid="p", sub="1"),
        provider.claims(sid="p", sub="1", events=event, nonce="n"),
        provider.claims(events=event),
        provider.claims(sid="p", events=event, iss="https://evil.example"),
        provider.claims(sid="p", events=event, aud="other"),
        {**provider.claims(sid="p", events=event), "iat": provider.now - 301},
        {**provider.claims(sid="p", events=event), "exp": provider.now - 61},
        {**provider.claims(sid="p", events=event), "exp": float("nan")},
        {**provider.claims(sid="p", events=event), "iat": float("nan")},
    )
    assert [post_logout_token(linked, provider.sign(claims)) for claims in wrong] == [400] * len(
        wrong
    )
    assert (
        post_logout_token(linked, without_signature(provider.claims(sid="p", events=event))) == 400
    )
    assert post_logout_token(linked, "x") == 400
    assert (is_signed_in(phone), is_signed_in(desk), is_signed_in(other)) == (True, True, True)
    assert (
        post_logout_token(linked, provider.sign(provider.claims(sid="p", sub="1", events=event)))
        == 200
    )
    assert (is_signed_in(phone), is_signed_in(desk), is_signed_in(other)) == (False, True, True)
    assert post_logout_token(linked, provider.sign(provider.claims(sub="1", events=event))) == 200
    assert (is_signed_in(desk), is_signed_in(other)) == (False, True)


def test_a_session_of_a_later_password_login_stays(
    linked: TestServer, provider: OpenIDProvider
) -> None:
    alice = sign_in(linked, provider, Browser(linked), sid="p")
    linked.run(linked.app.user_data.accounts.do_set_password(alice.user_id, "wonderland"))
    body = {**password_auth(alice.user_id), "device_id": alice.device_id}
    new_session = User(linked, linked.post("/_matrix/client/v3/login", body).json)
    assert send_logout_token(linked, provider, sid="p") == 200
    assert is_signed_in(new_session)


def test_a_backchannel_logout_ends_oauth_sessions(
    linked: TestServer, provider: OpenIDProvider
) -> None:
    desk, tv = Program(linked), Program(linked, device_id="TV00000001")
    browser = Browser(linked)
    browser.open(desk.request())  # a client starts the flow; the user signs in with the provider
    browser.follow("Town hall")
    browser.open(provider.sign_in(browser.location, **ALICE, sid="s"))
    browser.send(desk.path_of("authorization_endpoint"), button="allow")
    alice = desk.take(desk.exchange(returned(browser)["code"]))
    asked = tv.form("device_authorization_endpoint", client_id=tv.client_id, scope=tv.scope).json
    browser.open(f"/_mahalla/link?user_code={asked['user_code']}")
    browser.send("/_mahalla/link", button="allow")
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    on_tv = tv.take(tv.token(grant_type=grant, device_code=asked["device_code"]))
    assert (alice.user_id, on_tv.user_id) == ("@alice:example.org", "@alice:example.org")
    assert send_logout_token(linked, provider, sub="1", sid="s") == 200
    assert (is_signed_in(alice), is_signed_in(on_tv)) == (False, False)
    assert desk.refresh().status == 400
    browser.open(desk.request())
    assert browser.path.startswith("/_mahalla/sign_in")  # the browser session ends too
    assert [event for event, _ in audit_records(linked)][-3:] == [
        "session_ended",
        "session_ended",
        "browser_signed_out",
    ]


def in_browser(linked: TestServer, provider: OpenIDProvider, **claims: str) -> Browser:
    """Sign in to the account page with the provider."""
    browser = Browser(linked)
    browser.open("/_mahalla/account")
    browser.follow("Town hall")
    browser.open(provider.sign_in(browser.location, **{**ALICE, **claims}))
    assert is_in_there(browser)
    return browser


def is_in_there(browser: Browser) -> bool:
    browser.open("/_mahalla/account")
    return browser.path == "/_mahalla/account"


@pytest.mark.parametrize("who", [{}, {"sub": "1"}])
def test_a_backchannel_logout_ends_only_the_browser_of_its_session(
    linked: TestServer, provider: OpenIDProvider, who: dict[str, str]
) -> None:
    one, two = in_browser(linked, provider, sid="s1"), in_browser(linked, provider, sid="s2")
    bob = in_browser(linked, provider, sub="2", preferred_username="bob", sid="s1")
    assert send_logout_token(linked, provider, sid="s1", sub="3") == 200
    assert (is_in_there(one), is_in_there(two), is_in_there(bob)) == (True, True, True)
    assert send_logout_token(linked, provider, sid="s1", **who) == 200
    assert (is_in_there(one), is_in_there(two), is_in_there(bob)) == (False, True, bool(who))
    assert send_logout_token(linked, provider, sub="1") == 200
    assert not is_in_there(two)


def let_in(linked: TestServer, provider: OpenIDProvider, sid: str) -> tuple[Program, str]:
    """Allow the same device in a browser of this session; return the code."""
    desk, browser = Program(linked, device_id="DESK000001"), Browser(linked)
    browser.open(desk.request())
    browser.follow("Town hall")
    browser.open(provider.sign_in(browser.location, **ALICE, sid=sid))
    browser.send(desk.path_of("authorization_endpoint"), button="allow")
    return desk, returned(browser)["code"]


def test_a_running_session_ends_despite_a_later_unused_code(
    linked: TestServer, provider: OpenIDProvider
) -> None:
    desk, code = let_in(linked, provider, "p")
    alice = desk.take(desk.exchange(code))
    let_in(linked, provider, "q")  # the code is never used
    assert send_logout_token(linked, provider, sid="p") == 200
    assert not is_signed_in(alice)


def test_a_backchannel_logout_ends_unused_login_tokens(
    linked: TestServer, provider: OpenIDProvider
) -> None:
    tokens = []
    for sid in ("p", "q"):
        browser = Browser(linked)
        browser.open(provider.sign_in(open_provider(browser), **ALICE, sid=sid))
        browser.send("/_mahalla/upstream/client")
        tokens.append(parse_qs(urlsplit(browser.location).query)["loginToken"][0])
    assert send_logout_token(linked, provider, sid="p") == 200
    bodies = [{"type": "m.login.token", "token": token} for token in tokens]
    assert [linked.post("/_matrix/client/v3/login", body).status for body in bodies] == [403, 200]


def test_a_backchannel_logout_ends_decided_device_grants(
    linked: TestServer, provider: OpenIDProvider
) -> None:
    browser, answers = in_browser(linked, provider, sid="p"), []
    for device_id in ("TV00000001", "TV00000002"):
        tv = Program(linked, device_id=device_id)
        asked = tv.form(
            "device_authorization_endpoint", client_id=tv.client_id, scope=tv.scope
        ).json
        browser.open(f"/_mahalla/link?user_code={asked['user_code']}")
        browser.send("/_mahalla/link", button="allow")
        if device_id == "TV00000001":
            assert send_logout_token(linked, provider, sid="p") == 200
            browser = in_browser(linked, provider, sid="q")
        grant = "urn:ietf:params:oauth:grant-type:device_code"
        answers.append(tv.token(grant_type=grant, device_code=asked["device_code"]).status)
    assert answers == [400, 200]


def test_a_backchannel_logout_ends_unused_codes(
    linked: TestServer, provider: OpenIDProvider
) -> None:
    desk, code = let_in(linked, provider, "p")
    alice = desk.take(desk.exchange(code))
    _, code = let_in(linked, provider, "q")
    assert send_logout_token(linked, provider, sid="q") == 200
    assert (is_signed_in(alice), desk.exchange(code).status) == (True, 400)
    _, code = let_in(linked, provider, "r")
    alice = desk.take(desk.exchange(code))  # replaces the running session
    assert send_logout_token(linked, provider, sid="p") == 200
    assert is_signed_in(alice)
    assert send_logout_token(linked, provider, sid="r") == 200
    assert not is_signed_in(alice)


@pytest.mark.parametrize(
    "said",
    [
        {"sub": "1", "sid": 5},
        {"sub": "1", "sid": {"a": 1}},
        {"sub": ["x"], "sid": "s"},
        {"sub": {"a": 1}},
        {"sub": "1", "sid": "\0"},
        {"sub": "\0"},
        {"sub": None, "sid": None},
    ],
)
def test_an_invalid_logout_token_is_refused(
    linked: TestServer, provider: OpenIDProvider, said: dict[str, object]
) -> None:
    assert send_logout_token(linked, provider, **said) == 400


def test_backchannel_logout_can_be_disabled(server: TestServer, provider: OpenIDProvider) -> None:
    alice = sign_in(server, provider, Browser(server), sid="p")
    assert send_logout_token(server, provider, sid="p") == 404
    assert is_signed_in(alice)


def test_an_expired_account_is_refused(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider
) -> None:
    ending = "account_validity: {enabled: true, period: 1d}\n"
    server = TestServer(tmp_path, sqlite_database, CONFIG + TEMPLATES + ending, web=provider)
    alice = sign_in(server, provider, Browser(server))
    assert (
        server.run(
            server.app.accounts.renewals.do_set_expiry(
                alice.user_id, 1, sends_email=False, by=UserID("@root:example.org")
            )
        )
        == 1
    )
    browser = come_back(provider, server)
    assert (browser.status, "account has expired" in browser.words) == (403, True)
    assert alice.get("/_matrix/client/v3/account/whoami").errcode == "ORG_MATRIX_EXPIRED_ACCOUNT"
