"""A client that signs in by the OAuth 2.0 API, like Element X."""

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from tests.helpers.browser import Browser
from tests.helpers.http import Answer
from tests.helpers.server import TestServer, User

BASE = "https://matrix.example.org"
CONFIG = f"public_baseurl: {BASE}/\nrc_oauth: {{}}\n"
METADATA: Mapping[str, Any] = {
    "client_name": "Element X",
    "client_uri": "https://element.io/",
    "redirect_uris": ["io.element.android:/"],
    "token_endpoint_auth_method": "none",
    "response_types": ["code"],
    "grant_types": [
        "authorization_code",
        "refresh_token",
        "urn:ietf:params:oauth:grant-type:device_code",
    ],
    "application_type": "native",
    "policy_uri": "https://element.io/privacy",
    "tos_uri": "https://element.io/terms",
    "logo_uri": "https://element.io/logo.png",
}
VERIFIER = "v" * 43


def challenge_of(verifier: str) -> str:
    return urlsafe_b64encode(sha256(verifier.encode()).digest()).decode().rstrip("=")


class Program:
    """An OAuth client on one device."""

    def __init__(
        self,
        server: TestServer,
        metadata: Mapping[str, Any] = METADATA,
        device_id: str = "ELEMENTX01",
    ) -> None:
        self.server = server
        self.metadata = metadata
        self.device_id = device_id
        document = server.get("/_matrix/client/v1/auth_metadata")
        assert document.status == 200, document.body
        self.server_metadata = document.json
        answer = server.post(
            self.path_of("registration_endpoint"),
            metadata,
            headers={"Content-Type": "application/json"},
        )
        assert answer.status == 201, answer.body
        assert answer.headers["content-type"] == "application/json"
        self.client_id = str(answer.json["client_id"])
        self.tokens: dict[str, Any] = {}

    def path_of(self, endpoint: str) -> str:
        """Return the path of an endpoint of the server's metadata."""
        return urlsplit(str(self.server_metadata[endpoint])).path

    @property
    def scope(self) -> str:
        return (
            f"urn:matrix:org.matrix.msc2967.client:api:*"
            f" urn:matrix:org.matrix.msc2967.client:device:{self.device_id}"
        )

    def request(self, **changed: str) -> str:
        """Return the authorization URL's path and query. An empty value omits a parameter."""
        parameters = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.metadata["redirect_uris"][0],
            "scope": self.scope,
            "state": "a state",
            "code_challenge": challenge_of(VERIFIER),
            "code_challenge_method": "S256",
            **changed,
        }
        given = {name: value for name, value in parameters.items() if value}
        return f"{self.path_of('authorization_endpoint')}?{urlencode(given)}"

    def ask(self, browser: Browser, **changed: str) -> None:
        """Open the authorization URL in a browser, and sign in if asked."""
        browser.open(self.request(**changed))
        if browser.path.startswith("/_mahalla/sign_in"):
            browser.send("/_mahalla/sign_in", name="alice", password="wonderland")

    def code(self, browser: Browser, **changed: str) -> str:
        """Get an authorization code with the user's consent."""
        self.ask(browser, **changed)
        browser.send(self.path_of("authorization_endpoint"), button="allow")
        return returned(browser)["code"]

    def token(self, **parameters: str) -> Answer:
        """Send a request to the token endpoint."""
        return self.form("token_endpoint", **{"client_id": self.client_id, **parameters})

    def form(self, endpoint: str, **parameters: str) -> Answer:
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "application/json",
        }
        return self.server.client.request(
            "POST", self.path_of(endpoint), body=urlencode(parameters).encode(), headers=headers
        )

    def exchange(self, code: str, **changed: str) -> Answer:
        parameters = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.metadata["redirect_uris"][0],
            "code_verifier": VERIFIER,
            **changed,
        }
        return self.token(**{name: value for name, value in parameters.items() if value})

    def sign_in(self, browser: Browser) -> User:
        """Sign in with a new authorization code."""
        answer = self.exchange(self.code(browser))
        assert answer.status == 200, answer.body
        return self.take(answer)

    def take(self, answer: Answer) -> User:
        """Store the tokens of a response, and return their user."""
        self.tokens = answer.json
        token = str(self.tokens["access_token"])
        whoami = self.server.client.request("GET", "/_matrix/client/v3/account/whoami", token=token)
        assert whoami.status == 200, whoami.body
        return User(self.server, {**whoami.json, "access_token": token})

    def refresh(self, token: str | None = None, **changed: str) -> Answer:
        given = str(self.tokens["refresh_token"]) if token is None else token
        return self.token(**{"grant_type": "refresh_token", "refresh_token": given, **changed})


def returned(browser: Browser) -> dict[str, str]:
    """Return the parameters of the redirect to the client."""
    split = urlsplit(browser.location)
    return dict(parse_qsl(split.fragment or split.query, strict_parsing=True))


def assert_refused(answer: Answer, error: str = "invalid_grant", status: int = 400) -> None:
    """Check the error of a response of the OAuth 2.0 API."""
    assert (answer.status, answer.json.get("error")) == (status, error), answer.body
