"""HTTP to addresses that others gave us: well-known files, push gateways, previews of links,
identity servers.

Every address on the way, redirects included, is asked of the `AddressPolicy`; time and size have
limits.
"""

from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.http_client.connection import Connection, Received
from federation.http_client.connector import Dialler
from federation.http_client.errors import OutboundError
from federation.http_client.pool import Pool
from federation.http_client.request import REPEATABLE, TakeBody, encode_request, within
from federation.http_client.tls import TlsTrust

MAX_URL_CHARS = 8192
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class WebAnswer(msgspec.Struct, frozen=True):
    """What came back, whole, and from which address in the end. Names of headers are in lower
    case."""

    url: str
    status: int
    headers: dict[str, str]
    body: bytes


class _Target(msgspec.Struct, frozen=True):
    secure: bool
    host: str
    port: int
    authority: str
    path: str


class Web(Protocol):
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
    ) -> WebAnswer:
        """As `GuardedClient.request`. Raises OutboundError."""
        ...


class GuardedClient:
    """Asks servers that are not trusted."""

    def __init__(self, clock: IReactorTime, dialler: Dialler, pool: Pool, trust: TlsTrust) -> None:
        """`dialler`: with the policy for addresses."""
        self._clock = clock
        self._dialler = dialler
        self._pool = pool
        self._trust = trust

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
        """One request, and as many redirects as are allowed, all within so many seconds.

        A GET follows redirects with the same headers; without `redirects`, or with another method,
        the redirect is the answer. `max_bytes`: of the body, unpacked; `take` gets it where it is
        too long for memory. Raises OutboundError for whatever prevents a whole answer, an address
        that may not be contacted or is none included.
        """
        return await within(
            self._clock,
            seconds,
            self._follow(method, url, headers, body, max_bytes, redirects, only_https, take),
        )

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
    ) -> WebAnswer:
        while True:
            received = await self._ask(
                method, _read_url(url, only_https), headers, body, max_bytes, take
            )
            location = received.headers.get("location")
            if (
                received.status not in _REDIRECTS
                or location is None
                or method != "GET"
                or not redirects
            ):
                return WebAnswer(url, received.status, received.headers, received.body)
            redirects -= 1
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise OutboundError(
                    "it redirects to an address that is none", retryable=False
                ) from error

    async def _ask(
        self,
        method: str,
        target: _Target,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        max_bytes: int,
        take: TakeBody | None,
    ) -> Received:
        async def dial() -> Connection:
            tls = self._trust.towards(target.host) if target.secure else None
            return await self._dialler.dial(target.host, target.port, tls)

        try:
            request = encode_request(method, target.path, target.authority, headers, body)
        except ValueError as error:
            raise OutboundError("its address is none", retryable=False) from error
        key = (self, target.secure, target.host, target.port)
        return await self._pool.exchange(
            key, dial, request, max_bytes, repeatable=method in REPEATABLE, take=take
        )


def _read_url(url: str, only_https: bool) -> _Target:
    """Raises OutboundError for what is no address of the web that we ask."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise OutboundError("its address is none", retryable=False) from error
    if len(url) > MAX_URL_CHARS or not host or not url.isascii() or parts.username is not None:
        raise OutboundError("its address is none that is asked", retryable=False)
    if parts.scheme not in ("https",) if only_https else parts.scheme not in ("https", "http"):
        raise OutboundError(
            f"{parts.scheme or 'nothing'} is no scheme that is asked", retryable=False
        )
    secure = parts.scheme == "https"
    authority = f"[{host}]" if ":" in host else host
    if port is not None:
        authority = f"{authority}:{port}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(secure, host, port or (443 if secure else 80), authority, path)
