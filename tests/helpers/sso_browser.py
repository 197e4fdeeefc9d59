"""A browser that goes between our in-memory server and real server processes, with the cookies of
each.

traveller = Traveller(server, "https://matrix.example.org/")
traveller.go("https://matrix.example.org/_matrix/client/v3/login/sso/redirect?redirectUrl=…")
traveller.send(login="alice", password="wonderland")   # the first form of the current page
"""

import time
from collections.abc import Sequence
from http.client import HTTPMessage
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin
from urllib.request import HTTPCookieProcessor, HTTPRedirectHandler, Request, build_opener

from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError
from tests.helpers.browser import Browser, Page
from tests.helpers.server import TestServer

MOST_STEPS = 20
SECONDS = 60.0


class _NoRedirects(HTTPRedirectHandler):
    """Makes redirects visible instead of following them."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


class SSOBrowser:
    """A browser for all servers."""

    def __init__(self, server: TestServer, base: str) -> None:
        self.home = Browser(server)
        self._clock = server.clock
        self.url = ""
        self.text = ""
        self._base = base
        # the servers of the tests have no TLS, and all of them are 127.0.0.1
        jar = CookieJar(DefaultCookiePolicy(secure_protocols=("http", "https")))
        self._opener = build_opener(HTTPCookieProcessor(jar), _NoRedirects())

    @property
    def page(self) -> Page:
        """The current page."""
        return Page(self.text)

    @property
    def words(self) -> str:
        """The text of the current page."""
        return " ".join(" ".join(self.page.words).split())

    def go(self, url: str, fields: dict[str, str] | None = None) -> None:
        """Open a URL and follow redirects to a page, or to a client's URL."""
        for _ in range(MOST_STEPS):
            self.url = url
            location = (
                self._request_ours(url, fields)
                if url.startswith(self._base)
                else self._request_other(url, fields)
            )
            if location is None:
                return
            url, fields = urljoin(self.url, location), None
            if url.startswith("https://client.example/"):
                self.url, self.text = url, ""
                return
        raise AssertionError(f"too many redirects: {self.url}")

    def open_without_redirect(self, url: str) -> None:
        """Open a URL without following a redirect; `url` is then the redirect's target."""
        location = self._request_other(url, None)
        self.url = urljoin(url, location or "")

    def send(self, button: str | None = None, **fields: str) -> None:
        """Fill in the first form of the page and submit it."""
        form = self.page.forms[0]
        filled = {**form.fields, **fields}
        filled.update({name: value for name, value in form.buttons if value == button})
        self.go(urljoin(self.url, form.action), filled)

    def _request_ours(self, url: str, fields: dict[str, str] | None) -> str | None:
        # keep our clock up with real time: otherwise responses of real servers seem to be from
        # the future
        self._clock.advance(max(0.0, time.time() - self._clock.seconds()))
        path = "/" + url.removeprefix(self._base)
        answer = self.home.open(path) if fields is None else self.home.post(path, fields)
        self.text = answer.body.decode()
        return answer.headers.get("location")

    def _request_other(self, url: str, fields: dict[str, str] | None) -> str | None:
        body = None if fields is None else urlencode(fields).encode()
        try:
            with self._opener.open(Request(url, body), timeout=SECONDS) as answer:
                self.text = answer.read().decode()
                return None
        except HTTPError as error:
            self.text = error.read().decode()
            location = error.headers.get("Location")
            if location is None:
                raise AssertionError(f"{url}: {error.code} {self.text[:500]}") from error
            return str(location)


class BlockingWeb:
    """Lets the in-memory server send blocking requests to real servers."""

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        seconds: float = 30,
        max_bytes: int = 1 << 20,
        redirects: int = 0,
        only_https: bool = False,
    ) -> WebResponse:
        request = Request(url, body or None, dict(headers), method=method)
        try:
            with build_opener(_NoRedirects()).open(
                request, timeout=min(seconds, SECONDS)
            ) as answer:
                found = {name.lower(): value for name, value in answer.headers.items()}
                return WebResponse(url, answer.status, found, answer.read(max_bytes))
        except HTTPError as error:
            return WebResponse(url, error.code, {}, error.read(max_bytes))
        except OSError as error:
            raise OutboundError(str(error)) from error
