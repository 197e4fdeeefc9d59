"""One connection to a server: a request, its whole answer, and so on.

llhttp (by httptools) reads the answers. The other side is not trusted: the head and the body have
limits, as they come and once they are unpacked, and a long body that is kept here may not have been
packed too tightly; what comes unasked ends the connection. Time is limited by whoever waits: to
cancel what `exchange` waits for ends the connection, however busily the other side drips.
"""

import zlib
from collections.abc import Callable
from typing import Final, cast

import httptools
import msgspec
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, ITCPTransport
from twisted.internet.protocol import Protocol
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from federation.http_client.errors import ConnectionGone, CutOff, OutboundError, TooLong
from federation.http_client.request import TakeBody
from federation.http_client.tls import TlsName

MAX_HEAD_BYTES: Final = 64 << 10
"""Of an answer: its first line, its headers, and interim answers before it; and of what comes
between pieces of its body, or after it (lengths, trailers)."""
MAX_UNTAKEN_BYTES: Final = 64 << 10
"""Of the body of an answer that somebody would have taken, had it been a good one."""
FREELY_UNPACKED_BYTES: Final = 16 << 20
MAX_UNPACKED_TIMES: Final = 50
"""Beyond these bytes an answer that is kept in memory may be so many times as long as it was
packed: events, with their hashes and signatures, are three or four times as long."""
PIECE_BYTES: Final = 256 << 10
"""What is unpacked at once."""
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS


class Received(msgspec.Struct, frozen=True):
    """An answer. Names of headers are in lower case; the last of equal ones wins."""

    status: int
    headers: dict[str, str]
    body: bytes


@implementer(IHandshakeListener)
class Connection(Protocol):
    """Made by a dialler; `ready` fires with it once the other side is known to be the right one."""

    def __init__(self, tls: TlsName | None) -> None:
        self.ready: Deferred[Connection] = Deferred(lambda _: self.abort())
        self.is_open = False
        self._tcp: ITCPTransport | None = None
        self._on_close: Callable[[], None] | None = None
        self._tls = tls
        self._waiter: Deferred[Received] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._max_bytes = 0
        self._take: TakeBody | None = None
        self._unpacker: zlib._Decompress | None = None
        self._give: Callable[[bytes], None]
        self._forget_answer()

    async def exchange(
        self, request: bytes, max_bytes: int, take: TakeBody | None = None
    ) -> Received:
        """Send a request, wait for its answer. Raises OutboundError; ConnectionGone where nothing
        came back."""
        assert self._waiter is None
        if not self.is_open or self._tcp is None:
            raise ConnectionGone("the connection was closed")
        self._max_bytes = max_bytes
        self._take = take
        self._parser = httptools.HttpResponseParser(self)
        self._forget_answer()
        self._waiter = Deferred(self._cut_off)
        self._tcp.write(request)
        return await self._waiter

    def abort(self) -> None:
        """End it at once."""
        self.is_open = False
        if self._tcp is not None:
            self._tcp.abortConnection()

    def carried_by(self, tcp: ITCPTransport) -> None:
        """What is to be ended where this is given up before it is made."""
        self._tcp = tcp

    def when_closed(self, call: Callable[[], None]) -> None:
        """Call this when the connection ends while nobody waits for an answer."""
        self._on_close = call

    # ---- Twisted

    def connectionMade(self) -> None:
        self._tcp = cast(ITCPTransport, self.transport)
        self._tcp.setTcpNoDelay(True)
        if self._tls is None:
            self._begin()

    def handshakeCompleted(self) -> None:
        assert self._tls is not None
        try:
            self._tls.check_identity(cast(TLSMemoryBIOProtocol, self.transport).getHandle())
        except OutboundError as error:
            self._end(error)
        else:
            self._begin()

    def dataReceived(self, data: bytes) -> None:
        if self._waiter is None or self._parser is None:
            self.abort()
            return
        self._something_came = True
        # The head, or the trailer, is not known to end in these bytes, but does within as many as
        # are allowed, or not at all
        if self._bare_bytes > MAX_HEAD_BYTES:
            part = "trailer" if self._head_done else "head"
            self._end(OutboundError(f"the {part} of its answer is too long", retryable=False))
            return
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end(OutboundError("it wants to speak another protocol", retryable=False))
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._end(
                cause
                if isinstance(cause, OutboundError)
                else OutboundError("its answer is no proper HTTP")
            )
        else:
            if self._complete:
                self._finish()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.is_open = False
        if (
            self._waiter is not None
            and self._head_done
            and self._until_end
            and reason.check(ConnectionDone)
        ):
            self._finish()
        elif self._waiter is not None or not self.ready.called:
            self._end(_explain(reason, self._something_came))
        elif self._on_close is not None:
            self._on_close()

    # ---- llhttp

    def on_header(self, name: bytes, value: bytes) -> None:
        if (
            not self._head_done
        ):  # a trailer is no part of the head, and nobody asks for one: RFC 9110, section 6.5.1
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip(" \t")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._complete:
            raise OutboundError("more came than one answer", retryable=False)
        if self._parser.get_status_code() < 200:
            return
        self._head_done = True
        self._bare_bytes = 0
        if self._take is not None:
            taken = self._take(self._parser.get_status_code(), self._headers)
            if taken is None:
                self._max_bytes = min(self._max_bytes, MAX_UNTAKEN_BYTES)
            else:
                self._give, self._is_kept = taken, False
        length = self._headers.get("content-length")
        if length is not None and length.isdigit() and int(length) > self._max_bytes:
            raise self._too_long()
        self._until_end = length is None and "transfer-encoding" not in self._headers
        encoding = self._headers.pop("content-encoding", "identity").strip().lower()
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
        elif encoding not in ("identity", ""):
            raise OutboundError(
                "its answer is packed in a way that was not asked for", retryable=False
            )

    def on_body(self, data: bytes) -> None:
        self._bare_bytes = 0
        self._packed_size += len(data)
        if self._packed_size > self._max_bytes:
            raise self._too_long()
        if self._unpacker is None:
            self._pass(data)
            return
        try:
            while True:
                piece = self._unpacker.decompress(data, PIECE_BYTES)
                self._pass(piece)
                if self._is_kept and self._size > max(
                    FREELY_UNPACKED_BYTES, self._packed_size * MAX_UNPACKED_TIMES
                ):
                    raise OutboundError("its answer is packed too tightly", retryable=False)
                data = self._unpacker.unconsumed_tail
                if not data and len(piece) < PIECE_BYTES:
                    break
        except zlib.error as error:
            raise OutboundError("its answer is packed wrongly", retryable=False) from error

    def on_message_complete(self) -> None:
        assert self._parser is not None
        # Whoever waits hears of it after the last byte is read: a next request must not get what is
        # left of these
        self._complete = self._parser.get_status_code() >= 200
        self._stays = self._parser.should_keep_alive()
        if not self._complete:
            self._headers.clear()

    # ---- within

    def _forget_answer(self) -> None:
        self._bare_bytes = 0
        """Since it began, or since the head or the last piece of the body ended."""
        self._head_done = False
        self._complete = False
        self._stays = False
        self._until_end = False
        self._something_came = False
        self._headers: dict[str, str] = {}
        self._chunks: list[bytes] = []
        self._size = 0
        self._packed_size = 0
        self._unpacker = None
        self._give = self._chunks.append
        self._is_kept = True

    def _pass(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._max_bytes:
            raise self._too_long()
        self._give(data)

    def _begin(self) -> None:
        self.is_open = True
        if not self.ready.called:
            self.ready.callback(self)

    def _finish(self) -> None:
        waiter, self._waiter = self._waiter, None
        assert waiter is not None
        assert self._parser is not None
        assert self._tcp is not None
        if not self._stays:
            self.is_open = False
            self._tcp.loseConnection()
        received = Received(self._status(), self._headers, b"".join(self._chunks))
        self._parser = self._take = None
        self._forget_answer()
        waiter.callback(received)

    def _cut_off(self, waiter: Deferred[Received]) -> None:
        self._waiter = None
        self.abort()
        if self._head_done:
            waiter.errback(CutOff(self._status()))

    def _end(self, error: OutboundError) -> None:
        self.abort()
        if self._head_done:
            error.status = self._status()
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.errback(error)
        elif not self.ready.called:
            self.ready.errback(error)

    def _too_long(self) -> OutboundError:
        return TooLong(f"its answer is longer than {self._max_bytes} bytes", self._status())

    def _status(self) -> int:
        """Of the answer whose head has come."""
        assert self._parser is not None
        return int(self._parser.get_status_code())


def _explain(reason: Failure, something_came: bool) -> OutboundError:
    if isinstance(reason.value, SSL.Error):
        parts = reason.value.args[0] if reason.value.args else []
        return OutboundError(
            f"no safe connection: {', '.join(str(part[-1]) for part in parts) or 'TLS failed'}"
        )
    if something_came:
        return OutboundError("the connection broke within the answer")
    return ConnectionGone("the connection was closed")
