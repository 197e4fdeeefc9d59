"""The interface to the network: sends a request to another server and returns the response.

All code that sends requests to other Matrix servers uses the class `Wire`, a `typing.Protocol`. So
tests can replace the network, and cut, delay, reorder and falsify the traffic.
"""

from typing import Protocol

import msgspec

from federation.http_client.body import TakeBody
from federation.protocol.ids import ServerName


class WireRequest(msgspec.Struct, frozen=True):
    """A request that is ready to be sent. `uri`: path and query, percent-encoded, with the prefix
    `/_matrix/`."""

    method: str
    uri: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    seconds: float = 30
    """Time for the complete exchange, from resolving the server to the last byte."""
    max_bytes: int = 50 << 20
    """Longest response body that is read."""
    take: TakeBody | None = None
    """Receives the response body if it is too long for memory. The `body` of the answer is then
    empty."""


class WireResponse(msgspec.Struct, frozen=True):
    """A complete response. Header names are in lower case. If a header occurs several times, the
    last value is used."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire(Protocol):
    """Resolves a server name and exchanges a request with that server."""

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireResponse:
        """Send a request and return the response.

        Raises `RemoteError` if there is no complete one: no address, no connection, time, size.
        """
        ...
