"""Fetches pages and images for previews.

Laws:
- `PreviewRules` checks every URL, redirects included. The HTTP client checks the IP address of the
  host.
- A page is read up to a maximum length. An image that is too large is rejected. The total time is
  limited.
- Requests have no cookies and no referrer. The user agent names the software and the server.
"""

from collections.abc import Callable, Mapping, Sequence
from email.message import Message
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import urljoin

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.http_client.body import TakeBody
from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError
from federation.http_client.time_limit import within
from federation.protocol.errors import InvalidParam, MatrixError
from homeserver.services.previews.rules import PreviewRules, parse_url
from storage.media.spool import Spool

SECONDS: Final = 15.0
MAX_REDIRECTS: Final = 5
MAX_PAGE_BYTES: Final = 1 << 20
"""Bytes of a page that are read: metadata is at its start."""
MAX_DOCUMENT_BYTES: Final = 256 << 10
MAX_RESPONSE_BYTES: Final = 1 << 30
"""The client's limit of a response. A page may be longer than the part that is read."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PAGES: Final = frozenset({"text/html", "application/xhtml+xml", "application/xml", "text/xml"})


class PreviewClient(Protocol):
    """An `HttpClient` with the address policy of previews."""

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
        """Do what `HttpClient.request` does. Raises OutboundError."""
        ...


class FetchedPage(msgspec.Struct, frozen=True):
    """The content at a URL: the start of a page, an image (in the spool), or only its type."""

    url: str
    type: str
    charset: str
    page: bytes | None
    is_image: bool


class PreviewFetcher:
    """Fetches from web sites."""

    def __init__(
        self,
        *,
        web: PreviewClient,
        clock: IReactorTime,
        rules: PreviewRules,
        headers: Sequence[tuple[str, str]],
        max_image: int,
        seconds: float = SECONDS,
    ) -> None:
        """`headers`: of each request. `max_image`: bytes of an image. `seconds`: time limit of a
        fetch, redirects included."""
        self._web = web
        self._clock = clock
        self._rules = rules
        self._headers = tuple(headers)
        self._max_image = max_image
        self._seconds = seconds

    async def fetch(self, url: str, spool: Spool) -> FetchedPage:
        """Fetch a page or an image; an image goes to `spool`. Raises OutboundError."""
        receiver = _Receiver(spool=spool, max_image=self._max_image)
        final = await self._fetch(
            url, receiver, "text/html,application/xhtml+xml,image/*;q=0.8,*/*;q=0.5"
        )
        return FetchedPage(final, receiver.type, receiver.charset, receiver.page, receiver.is_image)

    async def fetch_document(self, url: str) -> bytes:
        """Fetch a short JSON document. Raises OutboundError."""
        receiver = _Receiver(spool=None, max_image=0)
        await self._fetch(url, receiver, "application/json")
        if receiver.document is None:
            raise OutboundError("it is not JSON", retryable=False)
        return receiver.document

    async def _fetch(self, url: str, receiver: "_Receiver", accept: str) -> str:
        """Fetch into `receiver` within the time limit. Return the final URL."""
        return await within(self._clock, self._seconds, self._follow(url, receiver, accept))

    async def _follow(self, url: str, receiver: "_Receiver", accept: str) -> str:
        """Follow redirects and return the final URL."""
        headers = (*self._headers, ("Accept", accept))
        for _ in range(MAX_REDIRECTS + 1):
            try:
                url = parse_url(url)
                self._rules.check(url)
            except (InvalidParam, MatrixError) as error:
                raise OutboundError(error.text, retryable=False) from error
            try:
                response = await self._web.request(
                    "GET",
                    url,
                    headers,
                    seconds=self._seconds,
                    max_bytes=MAX_RESPONSE_BYTES,
                    take=receiver.take,
                )
            except OutboundError:
                if receiver.has_enough:
                    return url
                raise
            location = response.headers.get("location")
            if response.status not in _REDIRECTS or location is None:
                if response.status != HTTPStatus.OK:
                    raise OutboundError(f"it answers {response.status}", retryable=False)
                return url
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise OutboundError("it redirects to an invalid URL", retryable=False) from error
        raise OutboundError("it redirects too often", retryable=False)


class _Receiver:
    """Receives the responses of a fetch, and ends the transfer when it has enough."""

    def __init__(self, *, spool: Spool | None, max_image: int) -> None:
        self.type = ""
        self.charset = ""
        self.is_image = False
        self.has_enough = False
        self._spool = spool
        self._max_image = max_image
        self._received: bytearray | None = None
        self._max_bytes = 0
        self._size = 0

    @property
    def page(self) -> bytes | None:
        return None if self._received is None or self.type not in _PAGES else bytes(self._received)

    @property
    def document(self) -> bytes | None:
        is_json = self.type == "application/json" or self.type.endswith("+json")
        return (
            None
            if self._received is None or not is_json or self.has_enough
            else bytes(self._received)
        )

    def take(self, status: int, headers: Mapping[str, str]) -> Callable[[bytes], None] | None:
        if status != HTTPStatus.OK:
            return None
        self.type, self.charset = _type_of(headers.get("content-type", ""))
        self._received, self._size, self.is_image = None, 0, False
        if (
            self._spool is not None
            and self.type.startswith("image/")
            and self.type != "image/svg+xml"
        ):
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length[:20]) > self._max_image:
                raise OutboundError("the image is too large", retryable=False)
            self.is_image = True
            self._spool.seek(0)
            self._spool.truncate()
            return self._take_image
        if self._spool is None or self.type in _PAGES:
            self._received = bytearray()
            self._max_bytes = MAX_DOCUMENT_BYTES if self._spool is None else MAX_PAGE_BYTES
            return self._take_page
        raise self._stop()

    def _take_page(self, data: bytes) -> None:
        assert self._received is not None
        self._received += data[: self._max_bytes - len(self._received)]
        if len(self._received) >= self._max_bytes:
            raise self._stop()

    def _take_image(self, data: bytes) -> None:
        assert self._spool is not None
        self._size += len(data)
        if self._size > self._max_image:
            raise OutboundError("the image is too large", retryable=False)
        try:
            self._spool.write(data)
        except OSError as error:
            raise OutboundError(f"it cannot be stored: {error}") from error

    def _stop(self) -> OutboundError:
        self.has_enough = True
        return OutboundError("enough was received", retryable=False)


def _type_of(header: str) -> tuple[str, str]:
    """Return the type and charset of a Content-Type header. Neither is trusted."""
    message = Message()
    message["Content-Type"] = header[:500]
    charset = message.get_param("charset", "")
    return message.get_content_type(), charset[:40] if isinstance(charset, str) else ""
