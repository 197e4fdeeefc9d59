"""Asking sites for what previews are made of.

Laws:
- Every address on the way is asked of the rules, and by the client of the policy for networks, once
  it is known where it leads.
- A page is read to a length and no further, however long it is; a picture that is too long is none.
  All has its time.
- No cookies, no referrer; the agent says what it is and whose.
"""

from collections.abc import Callable, Mapping, Sequence
from email.message import Message
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import urljoin

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.http_client.body import TakeBody
from federation.http_client.client import WebAnswer
from federation.http_client.errors import OutboundError
from federation.http_client.time_limit import within
from federation.protocol.errors import InvalidParam, MatrixError
from homeserver.services.previews.rules import PreviewRules, parse_url
from storage.media.spool import Spool

SECONDS: Final = 15.0
MAX_REDIRECTS: Final = 5
MAX_PAGE_BYTES: Final = 1 << 20
"""What a page says of itself is at its beginning."""
MAX_DOCUMENT_BYTES: Final = 256 << 10
MOST_BYTES: Final = 1 << 30
"""Of any answer, since a page may be longer than what is read of it."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PAGES: Final = frozenset({"text/html", "application/xhtml+xml", "application/xml", "text/xml"})


class PreviewWeb(Protocol):
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
    ) -> WebAnswer:
        """Raises OutboundError."""
        ...


class Found(msgspec.Struct, frozen=True):
    """What is at an address: a page (its beginning), a picture (in the spool), or something of this
    type."""

    url: str
    type: str
    charset: str
    page: bytes | None
    is_picture: bool


class SiteReader:
    """Asks sites."""

    def __init__(
        self,
        web: PreviewWeb,
        clock: IReactorTime,
        rules: PreviewRules,
        headers: Sequence[tuple[str, str]],
        max_picture: int,
        seconds: float = SECONDS,
    ) -> None:
        """`headers`: of each request. `max_picture`: bytes. `seconds`: for an answer, redirects
        included."""
        self._web = web
        self._clock = clock
        self._rules = rules
        self._headers = tuple(headers)
        self._max_picture = max_picture
        self._seconds = seconds

    async def read(self, url: str, spool: Spool) -> Found:
        """What is there; a picture goes to `spool`. Raises OutboundError."""
        taker = _Taker(spool, self._max_picture)
        final = await self._ask(
            url, taker, "text/html,application/xhtml+xml,image/*;q=0.8,*/*;q=0.5"
        )
        return Found(final, taker.type, taker.charset, taker.page, taker.is_picture)

    async def read_document(self, url: str) -> bytes:
        """A short document in JSON. Raises OutboundError."""
        taker = _Taker(None, 0)
        await self._ask(url, taker, "application/json")
        if taker.document is None:
            raise OutboundError("it is not JSON", retryable=False)
        return taker.document

    async def _ask(self, url: str, taker: "_Taker", accept: str) -> str:
        """Let `taker` have what is there; the address where it was in the end."""
        return await within(self._clock, self._seconds, self._follow(url, taker, accept))

    async def _follow(self, url: str, taker: "_Taker", accept: str) -> str:
        headers = (*self._headers, ("Accept", accept))
        for _ in range(MAX_REDIRECTS + 1):
            try:
                url = parse_url(url)
                self._rules.check(url)
            except (InvalidParam, MatrixError) as error:
                raise OutboundError(error.text, retryable=False) from error
            try:
                answer = await self._web.request(
                    "GET",
                    url,
                    headers,
                    seconds=self._seconds,
                    max_bytes=MOST_BYTES,
                    take=taker.take,
                )
            except OutboundError:
                if taker.has_enough:
                    return url
                raise
            location = answer.headers.get("location")
            if answer.status not in _REDIRECTS or location is None:
                if answer.status != HTTPStatus.OK:
                    raise OutboundError(f"it answers {answer.status}", retryable=False)
                return url
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise OutboundError(
                    "it redirects to an address that is none", retryable=False
                ) from error
        raise OutboundError("it redirects too often", retryable=False)


class _Taker:
    """Takes the answers on the way to what is wanted, and ends the exchange when it has enough."""

    def __init__(self, spool: Spool | None, max_picture: int) -> None:
        self.type = ""
        self.charset = ""
        self.is_picture = False
        self.has_enough = False
        self._spool = spool
        self._max_picture = max_picture
        self._received: bytearray | None = None
        self._most = 0
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
        self._received, self._size, self.is_picture = None, 0, False
        if (
            self._spool is not None
            and self.type.startswith("image/")
            and self.type != "image/svg+xml"
        ):
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length[:20]) > self._max_picture:
                raise OutboundError("the picture is too large", retryable=False)
            self.is_picture = True
            self._spool.seek(0)
            self._spool.truncate()
            return self._take_picture
        if self._spool is None or self.type in _PAGES:
            self._received = bytearray()
            self._most = MAX_DOCUMENT_BYTES if self._spool is None else MAX_PAGE_BYTES
            return self._take_page
        raise self._stop()

    def _take_page(self, data: bytes) -> None:
        assert self._received is not None
        self._received += data[: self._most - len(self._received)]
        if len(self._received) >= self._most:
            raise self._stop()

    def _take_picture(self, data: bytes) -> None:
        assert self._spool is not None
        self._size += len(data)
        if self._size > self._max_picture:
            raise OutboundError("the picture is too large", retryable=False)
        try:
            self._spool.write(data)
        except OSError as error:
            raise OutboundError(f"it cannot be kept: {error}") from error

    def _stop(self) -> OutboundError:
        self.has_enough = True
        return OutboundError("no more is wanted", retryable=False)


def _type_of(header: str) -> tuple[str, str]:
    """Type and charset of a Content-Type; none of it is believed."""
    message = Message()
    message["Content-Type"] = header[:500]
    charset = message.get_param("charset", "")
    return message.get_content_type(), charset[:40] if isinstance(charset, str) else ""
