"""The edge to the network: a request to another server goes out here, and its answer comes back.

Everything above speaks through this protocol, so that the network of a test can cut, delay, reorder
and lie.
"""

from typing import Protocol

import msgspec

from federation.http_client.body import TakeBody
from federation.protocol.ids import ServerName


class WireRequest(msgspec.Struct, frozen=True):
    """A request, ready to be sent. `uri` is path and query, percent-encoded, beginning with
    `/_matrix/`."""

    method: str
    uri: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    seconds: float = 30
    """How long the whole exchange may take, from finding the server to the last byte."""
    max_bytes: int = 50 << 20
    """The longest body of an answer that is read."""
    take: TakeBody | None = None
    """Who takes the body of the answer where it is too long for memory; then the answer's own is
    empty."""


class WireAnswer(msgspec.Struct, frozen=True):
    """What came back, whole. Names of headers are in lower case; the last of equal ones wins."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire(Protocol):
    """Finds a server by its name and exchanges a request with it."""

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireAnswer:
        """Raises `RemoteError` for whatever prevents a whole answer: no address, no connection,
        time, size."""
        ...
