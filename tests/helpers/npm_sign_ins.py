"""Sign-ins with the providers of `start_npm`: oidc-provider and samlp."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.helpers.identity_providers import BASE, HAS_SAML, NO_NPM
from tests.helpers.server import TestServer, User
from tests.helpers.sso_browser import SSOBrowser

REDIRECT = f"{BASE}_matrix/client/v3/login/sso/redirect"
CLIENT = "https://client.example/"

needs_saml = pytest.mark.skipif(not HAS_SAML, reason=NO_NPM)


class LogoutListener:
    """Receives logout notifications of the provider and stores their forms."""

    def __init__(self) -> None:
        self.forms: list[bytes] = []
        forms = self.forms

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                forms.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def redeem(server: TestServer, traveller: SSOBrowser) -> User:
    assert traveller.url.startswith(CLIENT), traveller.words
    token = parse_qs(urlsplit(traveller.url).query)["loginToken"][0]
    answer = server.post("/_matrix/client/v3/login", {"type": "m.login.token", "token": token})
    assert answer.status == 200, answer.body
    return User(server, answer.json)


def answer_of(
    server: TestServer,
    path: str = "/saml",
    user: str = "alice",
    to: str = f"/_matrix/client/v3/login/sso/redirect/saml?redirectUrl={CLIENT}",
) -> SSOBrowser:
    """Sign in at the SAML provider, starting at `to`. Return the browser at the page that posts the
    response back."""
    traveller = SSOBrowser(server, BASE)
    answer = traveller.home.open(to)
    assert answer.status == 302
    there = urlsplit(traveller.home.location)
    assert there.path == "/saml"
    traveller.go(f"{there.scheme}://{there.netloc}{path}?{there.query}&user={user}")
    return traveller
