"""What comes of a request before its body."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import ascii_letters, digits
from typing import Final

import msgspec

WHOLE_ADDRESS: Final = re.compile(rb"https?://[^/?]+", re.IGNORECASE)
HOST: Final = re.compile(
    rb"(?:(?:(?:[\w.~!$&'()*+;=-]|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]+\]|\[v[0-9A-Fa-f]+\.[\w.~!$&'()*+,;=:-]+\])"
    rb"(?::[0-9]*)?)?[ \t]*"
)
"""A host, maybe with a port (RFC 3986 section 3.2), or nothing, which whoever knows of none has to
say (RFC 9112 section 3.2). A name has no comma, though it might: that is what two headers are made
one with."""
USUAL: Final = (ascii_letters + digits + "/?&=%._~!$'()*+,;:@-").encode()
"""What addresses consist of (RFC 3986); they may have more in them."""
NOTHING: Final[Sequence[bytes]] = ()


class Head(msgspec.Struct, frozen=True, gc=False):
    """Names of headers are in lower case."""

    method: str
    uri: bytes
    keep_alive: bool
    takes_chunks: bool
    """A body may come in chunks that each say how long they are; else only the end of the
    connection ends it (HTTP/1.0)."""
    lines: list[tuple[bytes, bytes]]
    """The headers as they came."""
    last: dict[bytes, bytes]
    """The last value of each."""
    token: str | None = None
    """What `Authorization` says, the last of them, if it is a token."""

    def get(self, name: bytes) -> Sequence[bytes]:
        """The values of a header, in their order."""
        value = self.last.get(name)
        if value is None:
            return NOTHING
        if len(self.last) == len(self.lines):  # none came twice
            return (value,)
        return [value for each, value in self.lines if each == name]


def tells_host(
    lines: Sequence[tuple[bytes, bytes]], last: Mapping[bytes, bytes], *, must: bool
) -> bool:
    """Whether these headers tell for which host the request is, once, or, unless they `must`, not
    at all."""
    host = last.get(b"host")
    if host is None:
        return not must
    is_once = len(last) == len(lines) or sum(name == b"host" for name, _ in lines) == 1
    return is_once and _is_host(host)


@lru_cache(maxsize=64)  # there are few by which a server is called
def _is_host(host: bytes) -> bool:
    return HOST.fullmatch(host) is not None


def find_token(last: Mapping[bytes, bytes]) -> str | None:
    """The token in these headers, of which the last value of each counts. spec:
    client-server-api#using-access-tokens"""
    scheme, _, token = last.get(b"authorization", b"").partition(b" ")
    return token.decode("utf-8", "replace").strip() or None if scheme.lower() == b"bearer" else None


def without_server(uri: bytes) -> bytes:
    """Path and query where a client asks as it would ask a proxy, which a server has to take (RFC
    9112 section 3.2.2); else what it is."""
    whole = WHOLE_ADDRESS.match(uri)
    if whole is None:
        return uri
    rest = uri[whole.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def find_cookies(head: Head) -> tuple[tuple[str, str], ...]:
    """Names and values."""
    if b"cookie" not in head.last:
        return ()
    pairs = (
        pair.partition("=")
        for line in head.get(b"cookie")
        for pair in line.decode("latin-1").split(";")
    )
    return tuple((name.strip(), value.strip()) for name, equals, value in pairs if equals)
