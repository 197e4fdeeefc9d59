"""Options of a site, the protocol factory of one listener: served endpoints, proxy headers,
compression and limits."""

from collections.abc import Callable
from tempfile import SpooledTemporaryFile

import msgspec

from federation.protocol.errors import MatrixError
from homeserver.http.addresses import Networks, find_forwarded_address
from homeserver.http.page_paths import is_page_request
from homeserver.http.request_head import RequestHead
from homeserver.http.responses import Response, error_response
from storage.media.spool import Spool


class SiteOptions(msgspec.Struct, frozen=True):
    """The options of the site of one listener."""

    resources: frozenset[str] | None = None
    """The groups of endpoints that are served; None means all."""
    x_forwarded: bool = False
    trusted_proxies: Networks = ()
    request_id_header: str | None = None
    compress: bool = False
    idle_timeout: int = 60
    """The time in seconds after which a connection without requests or data is closed."""
    max_header_bytes: int = 16384
    spool: Callable[[int], Spool] = SpooledTemporaryFile
    """Makes the file that buffers a long body; it moves to disk beyond the given number of
    bytes."""

    error_page: Callable[[MatrixError, str], Response] | None = None
    """Renders an error as a page, in the language of the given `Accept-Language`."""

    def make_error_response(self, head: RequestHead, path: bytes, error: MatrixError) -> Response:
        """Return the error response: a page for a browser that shows one, otherwise JSON."""
        if self.error_page is None or not is_page_request(head, path):
            return error_response(error)
        return self.error_page(error, head.by_name.get(b"accept-language", b"").decode("latin-1"))

    def find_client_ip(self, head: RequestHead, peer_address: str) -> str:
        """Return the client address, from the proxy's header if proxies are trusted."""
        if self.x_forwarded:
            headers = head.get(b"x-forwarded-for")
            if headers:
                found = find_forwarded_address(
                    [value.decode("latin-1") for value in headers], self.trusted_proxies
                )
                if found is not None:
                    return found
        return peer_address

    def find_request_id(self, head: RequestHead) -> str | None:
        """Return the request ID that the proxy assigned, if any."""
        if self.request_id_header is None:
            return None
        text = head.by_name.get(self.request_id_header.lower().encode(), b"").decode("latin-1")
        return (
            text
            if 0 < len(text) <= 64 and text.isascii() and text.replace("-", "").isalnum()
            else None
        )
