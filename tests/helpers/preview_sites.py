"""Fake web sites for URL previews."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred

from federation.http_client.body import TakeBody
from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError

PIECE_BYTES = 8192


@dataclass
class LinkedPages:
    """Answers requests by URL; other URLs are unreachable."""

    pages: dict[str, tuple[int, Mapping[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    slow: list[Deferred[None]] | None = None
    """If this is a list, each response waits for a Deferred in it."""

    def put(self, url: str, body: bytes | str, type: str = "text/html; charset=utf-8") -> None:
        """Serve a page at this URL."""
        self.pages[url] = (
            200,
            {"content-type": type},
            body.encode() if isinstance(body, str) else body,
        )

    def redirect(self, url: str, place: str) -> None:
        """Redirect this URL to `place`."""
        self.pages[url] = (302, {"location": place}, b"")

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
        assert (method, redirects, body) == ("GET", 0, b"")
        self.asked.append((url, dict(headers)))
        if self.slow is not None:
            self.slow.append(Deferred())
            await self.slow[-1]
        if url not in self.pages:
            raise OutboundError("the host is unreachable")
        status, page_headers, content = self.pages[url]
        give = take(status, page_headers) if take is not None else None
        if give is not None:
            for start in range(0, len(content), PIECE_BYTES):
                give(content[start : start + PIECE_BYTES])
            content = b""
        return WebResponse(url, status, dict(page_headers), content)
