"""The request line and headers of a request."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import ascii_letters, digits
from typing import Final

import msgspec

ABSOLUTE_URI: Final = re.compile(rb"https?://[^/?]+", re.IGNORECASE)
HOST: Final = re.compile(
    rb"(?:(?:(?:[\w.~!$&'()*+;=-]|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]+\]"
    rb"|\[v[0-9A-Fa-f]+\.[\w.~!$&'()*+,;=:-]+\])"
    rb"(?::[0-9]*)?)?[ \t]*"
)
"""A host with an optional port (RFC 3986 section 3.2), or nothing, which a client that knows no
host must send (RFC 9112 section 3.2). Commas are refused although host names may contain them: they
mean two merged headers."""
URI_CHARACTERS: Final = (ascii_letters + digits + "/?&=%._~!$'()*+,;:@-").encode()
"""The characters of a URI by RFC 3986. Real URIs may contain others."""
NO_VALUES: Final[Sequence[bytes]] = ()


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """The request line and headers. Header names are in lower case."""

    method: str
    uri: bytes
    keep_alive: bool
    accepts_chunks: bool
    """Whether a body may be chunked. Otherwise (HTTP/1.0) only the end of the connection ends
    it."""
    headers: list[tuple[bytes, bytes]]
    """The headers as received."""
    by_name: dict[bytes, bytes]
    """The last value of each header."""
    token: str | None = None
    """The token in the last `Authorization` header, if any."""

    def get(self, name: bytes) -> Sequence[bytes]:
        """Return the values of a header, in order."""
        value = self.by_name.get(name)
        if value is None:
            return NO_VALUES
        if len(self.by_name) == len(self.headers):  # no header is repeated
            return (value,)
        return [value for each, value in self.headers if each == name]


def has_valid_host(
    lines: Sequence[tuple[bytes, bytes]], last: Mapping[bytes, bytes], *, must: bool
) -> bool:
    """Return whether the headers hold exactly one valid Host, or, unless `must`, none."""
    host = last.get(b"host")
    if host is None:
        return not must
    is_once = len(last) == len(lines) or sum(name == b"host" for name, _ in lines) == 1
    return is_once and _is_host(host)


@lru_cache(maxsize=64)  # a server has few host names
def _is_host(host: bytes) -> bool:
    return HOST.fullmatch(host) is not None


def find_token(last: Mapping[bytes, bytes]) -> str | None:
    """Return the bearer token, from the last `Authorization` header. spec:
    client-server-api#using-access-tokens"""
    scheme, _, token = last.get(b"authorization", b"").partition(b" ")
    return token.decode("utf-8", "replace").strip() or None if scheme.lower() == b"bearer" else None


def strip_authority(uri: bytes) -> bytes:
    """Reduce an absolute URI, which proxies receive and servers must accept (RFC 9112 section
    3.2.2), to path and query. Return other URIs unchanged."""
    absolute = ABSOLUTE_URI.match(uri)
    if absolute is None:
        return uri
    rest = uri[absolute.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def find_cookies(head: RequestHead) -> tuple[tuple[str, str], ...]:
    """Return the cookies as pairs of name and value."""
    if b"cookie" not in head.by_name:
        return ()
    pairs = (
        pair.partition("=")
        for line in head.get(b"cookie")
        for pair in line.decode("latin-1").split(";")
    )
    return tuple((name.strip(), value.strip()) for name, equals, value in pairs if equals)
