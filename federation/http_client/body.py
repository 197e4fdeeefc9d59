"""Reads the body of a response, with limits on its size and compression ratio.

The sender is not trusted. The size of a body is limited both as received and after decompression. A
body is decompressed in pieces, so that a small packet never becomes a large string. A long body
that is read into memory must not have an excessive compression ratio. If a body exceeds a limit,
the connection is closed.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from federation.http_client.errors import CancelledResponse, OutboundError, ResponseTooLong

TakeBody = Callable[[int, Mapping[str, str]], Callable[[bytes], None] | None]
"""Called with the status and the headers of a response. Returns a function that receives the body
piece by piece, so that it is never in memory as a whole, or None to hold the body in memory.
Both may raise OutboundError to end the exchange."""

MAX_UNSTREAMED_BYTES: Final = 64 << 10
"""Limit of a body for which `take` returns None, which is usually an error."""
MIN_RATIO_CHECK_BYTES: Final = 16 << 20
MAX_COMPRESSION_RATIO: Final = 50
"""Highest compression ratio beyond `MIN_RATIO_CHECK_BYTES`, for a body that is held in memory.
Events, with their hashes and signatures, reach three or four."""
PIECE_BYTES: Final = 256 << 10
"""Bytes that are decompressed at a time."""
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS


class BodyReader(Protocol):
    """Receives one body. `done` fires with the body, or with b"" if `take` has received it. Cancel
    `done` to end the connection."""

    def __init__(
        self,
        *,
        status: int,
        headers: Mapping[str, str],
        encoding: str,
        max_bytes: int,
        take: TakeBody | None = None,
    ) -> None:
        """`encoding`: the content coding. Names in `headers` are in lower case."""
        self.done: Deferred[bytes] = Deferred(self._cancel)
        self._status = status
        self._headers = headers
        self._encoding = encoding.lower()
        self._max_bytes = max_bytes
        self._take = take
        self._chunks: list[bytes] = []
        self._pass_on: Callable[[bytes], None] = self._chunks.append
        self._is_in_memory = True
        self._size = 0
        self._compressed_size = 0
        self._decompressor: zlib._Decompress | None = None

    def connectionMade(self) -> None:
        try:
            self._begin()
        except Exception as error:
            self._end(error)

    def dataReceived(self, data: bytes) -> None:
        if self.done.called:
            return
        try:
            self._read(data)
        except zlib.error:
            self._end(OutboundError("the answer is not compressed correctly", retryable=False))
        except Exception as error:
            self._end(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone) is not None:
            self.done.callback(b"".join(self._chunks))
        else:
            self._end(reason.value)

    def _begin(self) -> None:
        if self._take is not None:
            receive = self._take(self._status, self._headers)
            if receive is None:
                self._max_bytes = min(self._max_bytes, MAX_UNSTREAMED_BYTES)
            else:
                self._pass_on, self._is_in_memory = receive, False
        if int(self._headers.get("content-length", "0")) > self._max_bytes:
            raise self._too_long()
        if self._encoding in ("gzip", "x-gzip", "deflate"):
            self._decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
        elif self._encoding not in ("identity", ""):
            raise OutboundError(
                "the answer has a content encoding that was not requested", retryable=False
            )

    def _read(self, data: bytes) -> None:
        self._compressed_size += len(data)
        if self._compressed_size > self._max_bytes:
            raise self._too_long()
        if self._decompressor is None:
            self._add(data)
            return
        while True:
            piece = self._decompressor.decompress(data, PIECE_BYTES)
            self._add(piece)
            if self._is_in_memory and self._size > max(
                MIN_RATIO_CHECK_BYTES, self._compressed_size * MAX_COMPRESSION_RATIO
            ):
                raise OutboundError("the answer is compressed too much", retryable=False)
            data = self._decompressor.unconsumed_tail
            if not data and len(piece) < PIECE_BYTES:
                return

    def _add(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._max_bytes:
            raise self._too_long()
        self._pass_on(data)

    def _too_long(self) -> OutboundError:
        return ResponseTooLong(f"the answer is longer than {self._max_bytes} bytes", self._status)

    def _cancel(self, done: Deferred[bytes]) -> None:
        self._close()
        done.errback(CancelledResponse(self._status))

    def _end(self, error: BaseException | None) -> None:
        if isinstance(error, OutboundError):
            error.status = self._status
        self._close()
        self.done.errback(error)

    def _close(self) -> None:
        self._chunks.clear()
        cast(ITransport, self.transport).loseConnection()
