"""Sends HTTP requests to servers that are not trusted, such as push gateways, web pages for link
previews, and other Matrix servers.

treq sends the requests on an `IAgent` that checks each address and certificate
(`federation.http_client.agent`). This module adds limits on the time and on the body, and follows
redirects.
"""

from collections.abc import Sequence
from typing import Final, Protocol
from urllib.parse import urljoin, urlsplit

import msgspec
from hyperlink import EncodedURL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from federation.http_client.body import BodyReader, TakeBody
from federation.http_client.errors import OutboundError
from federation.http_client.time_limit import within

MAX_URL_CHARS: Final = 8192
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class WebResponse(msgspec.Struct, frozen=True):
    """A complete response, and the URL it came from after redirects.

    Header names are in lower case. If a header occurs several times, the last value is used.
    """

    url: str
    status: int
    headers: dict[str, str]
    body: bytes


class WebClient(Protocol):
    """Sends requests to addresses that are not Matrix servers."""

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
        """Like `HttpClient.request`. Raises OutboundError."""
        ...


class HttpClient:
    """Sends requests to untrusted servers."""

    def __init__(self, *, clock: IReactorTime, agent: IAgent) -> None:
        self._clock = clock
        self._treq = HTTPClient(agent, _NoCookies(), _Body)

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
        take: TakeBody | None = None,
    ) -> WebResponse:
        """Send a request, and follow up to `redirects` redirects, all within `seconds`.

        A GET follows redirects with the same headers. For another method, or without
        `redirects`, the redirect is the response. `max_bytes`: of the body, unpacked; `take` takes
        a body that is too long for memory. Raises OutboundError for whatever prevents a complete
        response, including a URL that is malformed or must not be contacted.
        """
        return await within(
            self._clock,
            seconds,
            self._follow(method, url, headers, body, max_bytes, redirects, only_https, take),
        )

    async def exchange(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        *,
        max_bytes: int,
        take: TakeBody | None,
    ) -> WebResponse:
        """Send one request to a URL that is known to be well-formed. Has no time limit.

        Raises OutboundError.
        """
        fields = Headers()
        for name, value in headers:
            fields.addRawHeader(name, value)
        if not fields.hasHeader("User-Agent"):
            fields.addRawHeader("User-Agent", "Mahalla")
        response = await self._treq.request(
            method,
            _parse_url(url),
            headers=fields,
            data=body,
            allow_redirects=False,
            unbuffered=True,
            reactor=self._clock,  # type: ignore[arg-type]  # for a time limit, which is not used
        )
        found = _read_headers(response)
        encoding = found.pop("content-encoding", "")
        reader = BodyReader(
            status=response.code, headers=found, encoding=encoding, max_bytes=max_bytes, take=take
        )
        response.deliverBody(reader)
        return WebResponse(url, response.code, found, await reader.done)

    async def _follow(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        max_bytes: int,
        redirects: int,
        only_https: bool,
        take: TakeBody | None,
    ) -> WebResponse:
        while True:
            checked = _check_url(url, only_https)
            answer = await self.exchange(
                method, checked, headers, body, max_bytes=max_bytes, take=take
            )
            location = answer.headers.get("location")
            if (
                answer.status not in _REDIRECTS
                or location is None
                or method != "GET"
                or not redirects
            ):
                return msgspec.structs.replace(answer, url=url)
            redirects -= 1
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise OutboundError(
                    "it redirects to an invalid address", retryable=False
                ) from error


class _ExactURL(EncodedURL):
    """A URL that is sent unchanged.

    Otherwise hyperlink would quote it again, although a signature may cover it. It would also
    refuse hosts that are IPv6 literals or contain an underscore.
    """

    def to_uri(self) -> "EncodedURL":
        return self


class _NoCookies(IndexableCookieJar):
    """Sends and stores no cookies."""

    def add_cookie_header(self, request: object) -> None:
        """Add no cookies."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Store no cookies."""


@implementer(IBodyProducer)
class _Body:
    """The body of a request, which is complete in memory."""

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self._body = body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Do nothing: all was written at once."""

    def resumeProducing(self) -> None:
        """Do nothing: all was written at once."""

    def stopProducing(self) -> None:
        """Do nothing: all was written at once."""


def _read_headers(response: IResponse) -> dict[str, str]:
    headers = {
        name.decode("latin-1").lower(): values[-1].decode("latin-1")
        for name, values in response.headers.getAllRawHeaders()
    }
    if isinstance(response.length, int):
        headers["content-length"] = str(response.length)
    return headers


def _parse_url(url: str) -> EncodedURL:
    try:
        return _ExactURL.from_text(url)
    except ValueError as error:
        raise OutboundError("its address is no valid URL", retryable=False) from error


def _check_url(url: str, only_https: bool) -> str:
    """Return the URL without its fragment. Raises OutboundError if it is malformed, or has a scheme
    that is not allowed."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise OutboundError("its address is no valid URL", retryable=False) from error
    is_printable = all("!" <= each <= "~" for each in url)
    if (
        len(url) > MAX_URL_CHARS
        or not host
        or not is_printable
        or parts.username is not None
        or port == 0
    ):
        raise OutboundError("its address is not allowed", retryable=False)
    if parts.scheme not in ("https",) if only_https else parts.scheme not in ("https", "http"):
        raise OutboundError(f"the scheme {parts.scheme!r} is not allowed", retryable=False)
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path or '/'}{query}"
