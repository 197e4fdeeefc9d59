"""A small HTTP/1.1 client, so that the load generator costs far less than the server.

A `Connection` is one kept-alive connection with one request at a time. It supports only what a
Matrix server sends (Content-Length or chunked bodies).
"""

from collections.abc import Mapping
from time import perf_counter

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IReactorTCP
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

HEAD_END = b"\r\n\r\n"
LENGTH = b"\r\ncontent-length:"
CHUNKED = b"\r\ntransfer-encoding: chunked"


class RequestFailed(Exception):
    """A response with a status other than 200."""

    def __init__(self, request: str, status: int, body: bytes) -> None:
        super().__init__(f"{request}: {status} {body[:300].decode('utf-8', 'replace')}")
        self.status = status


class Connection(Protocol):
    """One connection to the server."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._received = bytearray()
        self._response: Deferred[tuple[int, bytes]] | None = None
        self._status = 0
        self._body_start = -1
        self._length = -1
        self._lost = False
        self.answered_at = 0.0
        """When the last response was complete, by `perf_counter`."""

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        token: str | None = None,
    ) -> bytes:
        """Return the response body. Raises RequestFailed, or ConnectionError if the connection is
        lost."""
        if self._lost:
            raise ConnectionError("the connection is closed")
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n"
        if token is not None:
            head += f"Authorization: Bearer {token}\r\n"
        content = b""
        if body is not None:
            content = msgspec.json.encode(body)
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        assert self.transport is not None
        response: Deferred[tuple[int, bytes]] = Deferred()
        self._response = response
        self.transport.write(f"{head}\r\n".encode() + content)
        status, received = await response
        if status != 200:
            raise RequestFailed(f"{method} {path}", status, received)
        return received

    def close(self) -> None:
        """Close the connection. A pending request raises ConnectionError."""
        if self.transport is not None:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        if self._body_start < 0:
            end = self._received.find(HEAD_END)
            if end < 0:
                return
            head = bytes(self._received[:end]).lower()
            self._status = int(head[9:12])
            self._body_start = end + len(HEAD_END)
            at = head.find(LENGTH)
            self._length = int(head[at + len(LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else -1
            if at < 0 and CHUNKED not in head:
                raise ValueError(f"a response of unknown length: {head!r}")
        if self._length >= 0:
            if len(self._received) >= self._body_start + self._length:
                self._finish(bytes(self._received[self._body_start :]))
        elif self._received.endswith(b"0\r\n\r\n"):
            body = _join_chunks(memoryview(self._received)[self._body_start :].tobytes())
            if body is not None:
                self._finish(body)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        response, self._response = self._response, None
        if response is not None:
            response.errback(ConnectionError("the server closed the connection"))

    def _finish(self, body: bytes) -> None:
        self.answered_at = perf_counter()
        self._received = bytearray()
        self._body_start = -1
        response, self._response = self._response, None
        if response is not None:
            response.callback((self._status, body))


def _join_chunks(data: bytes) -> bytes | None:
    """Return the content of a chunked body, or None while it is incomplete."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(data[at:end].split(b";", 1)[0], 16)
        if size == 0:
            return b"".join(parts)
        if len(data) < end + 2 + size + 2:
            return None
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


async def connect(reactor: IReactorTCP, port: int) -> Connection:
    """Open a connection to this port of the loopback interface."""
    connection = Connection(f"127.0.0.1:{port}")
    await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), connection)
    return connection
