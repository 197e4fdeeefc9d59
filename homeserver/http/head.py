"""What comes of a request before its body."""

import re
from collections.abc import Mapping, Sequence
from string import ascii_letters, digits
from typing import Final

import msgspec

WHOLE_ADDRESS: Final = re.compile(rb"https?://[^/?]+", re.IGNORECASE)
USUAL: Final = (ascii_letters + digits + "/?&=%._~!$'()*+,;:@-").encode()
"""What addresses consist of (RFC 3986); they may have more in them."""
NOTHING: Final[Sequence[bytes]] = ()


class Head(msgspec.Struct, frozen=True, gc=False):
    """Names of headers are in lower case."""

    method: str
    uri: bytes
    keep_alive: bool
    takes_chunks: bool
    """A body may come in chunks that each say how long they are; else only the end of the connection ends it (HTTP/1.0)."""
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


def is_twice(name: bytes, lines: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a header came more than once."""
    return sum(each == name for each, _ in lines) > 1


def find_token(last: Mapping[bytes, bytes]) -> str | None:
    """The token in these headers, of which the last value of each counts. spec: client-server-api#using-access-tokens"""
    scheme, _, token = last.get(b"authorization", b"").partition(b" ")
    return token.decode("utf-8", "replace").strip() or None if scheme.lower() == b"bearer" else None


def without_server(uri: bytes) -> bytes:
    """Path and query where a client asks as it would ask a proxy, which a server has to take (RFC 9112 section 3.2.2); else what it is."""
    whole = WHOLE_ADDRESS.match(uri)
    if whole is None:
        return uri
    rest = uri[whole.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


def find_cookies(head: Head) -> tuple[tuple[str, str], ...]:
    """Names and values."""
    if b"cookie" not in head.last:
        return ()
    pairs = (pair.partition("=") for line in head.get(b"cookie") for pair in line.decode("latin-1").split(";"))
    return tuple((name.strip(), value.strip()) for name, equals, value in pairs if equals)
