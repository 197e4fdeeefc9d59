"""Types of handler parameters: the remote server that sent the request (`Peer`), and the request's
method, URI, headers and client address (`RequestContext`)."""

from collections.abc import Mapping
from typing import Final

import msgspec

from federation.protocol.ids import ServerName


class Peer(msgspec.Struct, frozen=True):
    """The remote server that sent the request. Its signature has been checked."""

    server_name: ServerName


MAX_USER_AGENT: Final = 500


def find_user_agent(headers: Mapping[bytes, bytes]) -> str:
    """Return the client's `User-Agent`, cut to `MAX_USER_AGENT`.

    `headers`: by lower-case name.
    """
    return headers.get(b"user-agent", b"").decode("utf-8", "replace")[:MAX_USER_AGENT]


class RequestContext(msgspec.Struct, frozen=True, gc=False):
    """The request without its path parameters, query and body."""

    request_id: str
    method: str
    uri: bytes
    """Path and query as sent."""
    client_ip: str
    headers: Mapping[bytes, bytes]
    """The last value of each header, by lower-case name. (Plain values: a reference to the request
    would be a cycle that the garbage collector does not see.)"""
    content_type: str = ""
    """The declared content type; set only if the endpoint takes the body as a file."""
    body_size: int = 0
    """The size of the body in bytes."""
    is_secure: bool = False
    """Whether the client used TLS, to this server or to a trusted proxy."""
    cookies: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """The path as it was sent, still percent-encoded, without the query."""
        return self.uri.partition(b"?")[0].decode("latin-1")

    @property
    def user_agent(self) -> str:
        """The client's `User-Agent`."""
        return find_user_agent(self.headers)

    @property
    def languages(self) -> str:
        """The value of `Accept-Language`."""
        return self.headers.get(b"accept-language", b"").decode("latin-1")

    def header(self, name: str) -> str | None:
        """Return the last value of a header, or None."""
        value = self.headers.get(name.lower().encode("ascii"))
        return None if value is None else value.decode("latin-1")
