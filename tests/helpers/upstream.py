"""Signs in with an upstream identity provider."""

from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from homeserver.services.upstream.oidc.tokens import LOGOUT_EVENT
from tests.helpers.browser import Browser
from tests.helpers.openid import LOGOUT, OpenIDProvider
from tests.helpers.server import TestServer, User

REDIRECT = "/_matrix/client/v3/login/sso/redirect"
CLIENT = "https://client.example/done"
ALICE = {
    "sub": "1",
    "preferred_username": "alice",
    "name": "Alice Liddell",
    "email": "Alice@Example.com",
}


def open_provider(browser: Browser, client: str = CLIENT) -> str:
    """Start a sign-in for a client; return the provider's URL to which the server redirects."""
    answer = browser.open(f"{REDIRECT}/oidc-town?redirectUrl={client}")
    assert answer.status == 302, browser.words
    return browser.location


def sign_in(server: TestServer, provider: OpenIDProvider, browser: Browser, **claims: str) -> User:
    """Sign in with the provider and return the user."""
    browser.open(provider.sign_in(open_provider(browser), **{**ALICE, **claims}))
    assert browser.status == 200, browser.words
    browser.send("/_mahalla/upstream/client")
    return redeem(server, browser)


def redeem(server: TestServer, browser: Browser, **further: str) -> User:
    """Redeem the login token of the redirect to the client."""
    assert browser.status in (302, 303), browser.words
    token = parse_qs(urlsplit(browser.location).query)["loginToken"][0]
    answer = server.post(
        "/_matrix/client/v3/login", {"type": "m.login.token", "token": token, **further}
    )
    assert answer.status == 200, answer.body
    return User(server, answer.json)


def post_logout_token(server: TestServer, token: str) -> int:
    """Send a logout token of the provider; return the status of the response."""
    return server.post(LOGOUT, body=urlencode({"logout_token": token}).encode()).status


def send_logout_token(server: TestServer, provider: OpenIDProvider, **claims: Any) -> int:
    """Let the provider sign and send a logout token; return the status of the response."""
    token = provider.sign(provider.claims(**claims, events={LOGOUT_EVENT: {}}))
    return post_logout_token(server, token)


def is_signed_in(user: User) -> bool:
    """Return whether the user's access token is valid."""
    return user.get("/_matrix/client/v3/account/whoami").status == 200


def check_imported_profile(server: TestServer, alice: User) -> None:
    """Check that Alice's account has the name and the address that the provider has of her."""
    profile = server.get(f"/_matrix/client/v3/profile/{alice.user_id}").json
    assert profile["displayname"] == ALICE["name"]
    threepids = alice.get("/_matrix/client/v3/account/3pid").json["threepids"]
    assert threepids[0]["address"] == ALICE["email"].lower()
