"""One HTTP/1.1 connection. It answers its requests one after another.

llhttp, the parser of Node.js, parses the requests (through httptools). It refuses input that two
parsers could read differently, and it is five times cheaper than a parser in Python.

Laws:
- Answers leave in the order of the requests. While a request is being answered, later ones wait in
  a bounded buffer; when it is full, reading pauses.
- A request is the last on its connection if it is malformed, too large or too slow, or if its body
  is refused. After the answer, further input is discarded for a moment before the connection
  closes. Otherwise the client's system may drop the answer, because the connection would close
  while input still arrives.
- An idle connection is closed, and so is a connection that sends too slowly. A head must be
  complete within `idle_timeout`. The head and the first `FREE_BYTES` of a body must
  arrive within `MAX_SECONDS`, and the rest of the body within the same time again
  (`body_budget.py`). There is no such limit for the rest of an uploaded file.
"""

import re
from collections import deque
from collections.abc import Callable
from itertools import chain
from socket import socket
from typing import Final, Protocol

import httptools
import msgspec
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IPullProducer,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol as Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from homeserver.http.addresses import normalise_address
from homeserver.http.body_budget import FREE_BYTES, MAX_SECONDS
from homeserver.http.request_head import RequestHead, find_token, has_valid_host, strip_authority
from homeserver.http.response_head import (
    CONTINUE,
    malformed_response,
    too_long_response,
    too_slow_response,
    unknown_expectation_response,
    unknown_method_response,
)

LINGER_SECONDS: Final = 5
LINGER_BYTES: Final = 1 << 20
ABORT_SECONDS: Final = 15
"""Time limit for a closed connection to send its buffered bytes."""
MAX_HEADERS: Final = 100
MAX_PIPELINED_BYTES: Final = 1 << 16
"""Pipelined bytes that are buffered while a request is being answered; then reading pauses."""
READ_SIZE: Final = 1 << 14
"""Bytes per read. Twisted allocates the buffer first; its 64 KiB cost as much as the read."""
LONG_READ_SIZE: Final = 1 << 16
"""Bytes per read of a long body."""
VERSIONS: Final = frozenset({"1.0", "1.1"})
UNKNOWN_METHOD: Final = re.compile(rb"[A-Za-z]+ /")


class Exchange(Protocol):
    """A request from its headers to its response. The channel calls `begin`, `add_body` for each
    piece of the body, then `run`."""

    def begin(self, head: RequestHead, length: int | None) -> None:
        """The headers have arrived. `length`: the declared length of the body, if any."""
        ...

    def add_body(self, data: bytes) -> None:
        """A piece of the body has arrived."""
        ...

    def run(self) -> None:
        """The request is complete. The exchange calls `MatrixChannel.done` when it has
        responded."""
        ...

    def on_disconnect(self) -> None:
        """The client has disconnected."""
        ...


class PipelinedRequest(msgspec.Struct):
    """A pipelined request, received before the previous one was answered."""

    head: RequestHead
    length: int | None
    pieces: list[bytes] = msgspec.field(default_factory=list)
    is_complete: bool = False


class Transport(Protocol):
    """The methods that we use of TCP, TLS and Unix connections."""

    def write(self, data: bytes) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def getPeer(self) -> object: ...


@implementer(IPushProducer, IPullProducer)
class MatrixChannel(Connection):
    """A connection and its requests, handled in order."""

    __slots__ = (
        "_active_at",
        "_advancing",
        "_body_bytes",
        "_clock",
        "_discarded",
        "_exchange",
        "_head_bytes",
        "_idle_timeout",
        "_in_head",
        "_lines",
        "_make_exchange",
        "_max_header_bytes",
        "_parser",
        "_producer",
        "_read_more",
        "_read_size",
        "_reading",
        "_refused",
        "_send_now",
        "_started_at",
        "_timer",
        "_unread",
        "_uri",
        "_waiting",
        "is_full",
        "is_secure",
        "peer_address",
        "persistent",
    )

    transport: Transport | None  # type: ignore[assignment]

    def __init__(
        self,
        *,
        clock: IReactorTime,
        make_exchange: "Callable[[MatrixChannel], Exchange]",
        idle_timeout: float,
        max_header_bytes: int,
    ) -> None:
        self.peer_address = ""
        self.is_secure = False
        self.persistent = True
        self.is_full = False
        """The client must read before we write more. Without TLS: before we write anything more."""
        self._producer: IPushProducer | None = None
        self._clock = clock
        self._make_exchange = make_exchange
        self._idle_timeout = idle_timeout
        self._max_header_bytes = max_header_bytes
        self._parser: httptools.HttpRequestParser | None = None
        self._send_now: Callable[[bytes], int] | None = None
        self._read_more: Callable[[], object] | None = None
        self._exchange: Exchange | None = None
        self._reading: Exchange | PipelinedRequest | None = None
        self._waiting: deque[PipelinedRequest] = deque()
        self._unread = b""
        self._advancing = False
        self._refused = False
        self._discarded = 0
        self._read_size = READ_SIZE
        self._uri = b""
        self._lines: list[tuple[bytes, bytes]] = []
        """Headers of the request being parsed."""
        self._head_bytes = 0
        self._body_bytes = 0
        self._started_at = 0.0
        """When the first byte of the request being parsed arrived."""
        self._in_head = True
        self._active_at = 0.0
        self._timer: IDelayedCall | None = None

    # Called by the transport.

    def connectionMade(self) -> None:
        transport = self.transport
        assert transport is not None
        self.is_secure = ISSLTransport.providedBy(transport)
        if not self.is_secure:
            # With TLS these belong to the socket below and would bypass the encryption.
            get_handle: Callable[[], socket] | None = getattr(transport, "getHandle", None)
            self._send_now = None if get_handle is None else get_handle().send
            self._read_more = getattr(transport, "doRead", None)
        if ITCPTransport.providedBy(transport):
            # Responses are written in one piece. Nagle's algorithm would delay the last packet by
            # 40 ms.
            transport.setTcpNoDelay(True)
        self._set_read_size(READ_SIZE)
        self.peer_address = normalise_address(str(getattr(transport.getPeer(), "host", ""))) or ""
        # A pull producer is resumed whenever the write buffer is empty.
        transport.registerProducer(self, self._send_now is None)
        self._parser = httptools.HttpRequestParser(self)
        self._active_at = self._clock.seconds()
        self._timer = self._clock.callLater(self._idle_timeout, self._check_idle)

    def dataReceived(self, data: bytes) -> None:
        if self._refused:
            self._discard(len(data))
        elif self._waiting or self._unread:
            self._buffer_unread(data)
        else:
            was_usual = self._read_size == READ_SIZE
            self._feed(data)
            is_long = was_usual and len(data) == READ_SIZE and self._read_size != READ_SIZE
            if is_long and self._read_more is not None and not self._refused:
                # More of the body has arrived: reading it now saves a turn of the reactor.
                self._read_more()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self._set_timer(None)
        exchange, self._exchange, self._reading = self._exchange, None, None
        self._waiting.clear()
        self._unread = b""
        self._parser = None
        self._refused = True
        if exchange is not None:
            exchange.on_disconnect()

    # Called by an exchange.

    def send(self, data: bytes) -> None:
        """Write an answer, or a part of one.

        Twisted writes in the next turn of the reactor. Most answers fit into the socket's buffer,
        so we write at once, which saves a turn and two system calls. The rest, and all that
        follows until the client has read it, goes through the transport.
        """
        transport = self.transport
        assert transport is not None
        if self._send_now is not None and not self.is_full:
            try:
                sent = self._send_now(data)
            except OSError:
                sent = 0  # full or lost: the transport handles both
            if sent == len(data):
                return
            data = data[sent:]
            self.pauseProducing()
        transport.write(data)

    def done(self) -> None:
        """Close the connection after an answer, or start the next request."""
        self._exchange = None
        self._active_at = self._clock.seconds()
        if self._refused:
            return
        if not self.persistent:
            self._refused = True
            self._close()
        elif self._waiting or self._unread:
            self._advance()

    def refuse(self) -> None:
        """Discard further input for a moment, then close the connection."""
        self._refused = True
        self.persistent = False
        self._waiting.clear()
        self._unread = b""
        self._set_timer(LINGER_SECONDS, self._close)

    def abort(self) -> None:
        """Reset the connection in the middle of an answer, so that it is not taken for complete."""
        if self.transport is not None:
            self.transport.abortConnection()

    def registerProducer(self, producer: IPushProducer, _streaming: bool) -> None:
        """Forward flow control to the producer of a streamed answer."""
        self._producer = producer

    def unregisterProducer(self) -> None:
        """Stop forwarding: the streamed answer is complete."""
        self._producer = None

    # Flow control, called by the transport.

    def pauseProducing(self) -> None:
        self.is_full = True
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        self.is_full = False
        if self._producer is not None:
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        if self._producer is not None:
            self._producer.stopProducing()

    # Called by the parser, in this order.

    def on_message_begin(self) -> None:
        self._uri = b""
        self._lines = []

    def on_url(self, url: bytes) -> None:
        self._uri += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer of a chunked body, which we ignore
            self._lines.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if self._refused or parser is None:
            return
        uri, lines = self._uri, self._lines
        self._in_head, self._head_bytes, self._body_bytes = False, 0, 0
        size = len(uri) + 4 * len(lines) + sum(map(len, chain.from_iterable(lines)))
        if len(lines) > MAX_HEADERS or size > self._max_header_bytes:
            self._end_long_head()
            return
        if not (is_path := uri.startswith(b"/")):
            uri = strip_authority(uri)
            is_path = uri.startswith(b"/") or uri == b"*"
        version, last = parser.get_http_version(), dict(lines)
        takes_chunks = version == "1.1"
        has_host = has_valid_host(lines, last, must=takes_chunks)
        if not (is_path and has_host and uri.isascii() and version in VERSIONS):
            self._end(malformed_response())
            return
        method, keep_alive = parser.get_method().decode("ascii"), parser.should_keep_alive()
        head = RequestHead(method, uri, keep_alive, takes_chunks, lines, last, find_token(last))
        length = int(last[b"content-length"]) if b"content-length" in last else None
        if self._exchange is None and not self._waiting:
            self._reading = self._start(head, length)
        else:
            waiting = PipelinedRequest(head, length)
            self._waiting.append(waiting)
            self._reading = waiting

    def on_body(self, data: bytes) -> None:
        if self._refused:
            return
        self._body_bytes += len(data)
        reading = self._reading
        if isinstance(reading, PipelinedRequest):
            reading.pieces.append(data)
        elif reading is not None:
            reading.add_body(data)

    def on_message_complete(self) -> None:
        self._in_head = True
        reading, self._reading = self._reading, None
        if self._refused or reading is None:
            return
        if isinstance(reading, PipelinedRequest):
            reading.is_complete = True
        else:
            reading.run()

    # Input.

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            return
        self._active_at = self._clock.seconds()
        if self._in_head:
            if not self._head_bytes:
                self._started_at = self._active_at
            self._head_bytes += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # We support no upgrade: this request is answered as HTTP/1.1, and is the last one.
            self.persistent = False
        except httptools.HttpParserInvalidMethodError:
            self._end(
                unknown_method_response() if UNKNOWN_METHOD.match(data) else malformed_response()
            )
        except httptools.HttpParserError:
            self._end(malformed_response())
        else:
            if self._in_head and self._head_bytes > self._max_header_bytes:
                self._end_long_head()

    def _start(self, head: RequestHead, length: int | None) -> Exchange | None:
        self.persistent = head.keep_alive
        size = READ_SIZE if length is None or length <= READ_SIZE else LONG_READ_SIZE
        if size != self._read_size:
            self._set_read_size(size)
        exchange = self._exchange = self._make_exchange(self)
        exchange.begin(head, length)
        if self._refused:
            return None
        # HTTP/1.0 has no Expect
        if head.accepts_chunks and (expected := head.by_name.get(b"expect")):
            if expected.lower() != b"100-continue":
                self._end(unknown_expectation_response())
                return None
            self.send(CONTINUE)
        return exchange

    def _set_read_size(self, size: int) -> None:
        self._read_size = size
        if self._send_now is not None:  # with TLS another transport reads
            self.transport.bufferSize = size  # type: ignore[union-attr]

    def _advance(self) -> None:
        """Start waiting requests while each is answered at once; then resume reading."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._exchange is None and self._waiting and not self._refused:
                waiting = self._waiting.popleft()
                exchange = self._start(waiting.head, waiting.length)
                if exchange is None:
                    break
                for piece in waiting.pieces:
                    exchange.add_body(piece)
                if waiting.is_complete:
                    exchange.run()
                elif self._reading is waiting:
                    self._reading = exchange
            # or the rest of the current request is in the buffer
            has_room = self._exchange is None or self._reading is self._exchange
            if has_room and not self._waiting and self._unread and not self._refused:
                unread, self._unread = self._unread, b""
                self._feed(unread)
        finally:
            self._advancing = False
        if not self._unread and self.transport is not None and not self._refused:
            self.transport.resumeProducing()
        if self._exchange is None and (self._waiting or self._unread) and not self._refused:
            self._clock.callLater(0, self._advance)

    def _buffer_unread(self, data: bytes) -> None:
        self._unread += data
        if len(self._unread) > MAX_PIPELINED_BYTES and self.transport is not None:
            self.transport.pauseProducing()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > LINGER_BYTES:
            self._close()

    def _end_long_head(self) -> None:
        is_uri = 2 * len(self._uri) > self._max_header_bytes
        self._end(too_long_response(self._max_header_bytes, is_uri=is_uri))

    def _end(self, response: bytes) -> None:
        """Send a last answer and refuse further input."""
        if self._refused:
            return
        exchange, self._exchange, self._reading = self._exchange, None, None
        if exchange is not None:
            exchange.on_disconnect()
        self.send(response)
        self.refuse()

    # Time-outs.

    def _check_idle(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        idle = now - self._active_at
        if self._exchange is not None and self._reading is None:
            self._set_timer(self._idle_timeout, self._check_idle)
        elif idle >= self._idle_timeout:
            self._close()
        elif self._is_too_slow(now):
            self._end(too_slow_response())
        else:
            self._set_timer(self._idle_timeout - idle, self._check_idle)

    def _is_too_slow(self, now: float) -> bool:
        elapsed = now - self._started_at
        if self._in_head:
            return self._head_bytes > 0 and elapsed >= self._idle_timeout
        return self._body_bytes <= FREE_BYTES and elapsed >= MAX_SECONDS

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.unregisterProducer()  # a TLS connection would wait for it
            self.transport.loseConnection()
            self._set_timer(ABORT_SECONDS, self.abort)

    def _set_timer(self, seconds: float | None, call: Callable[[], None] | None = None) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        if seconds is not None and call is not None:
            self._timer = self._clock.callLater(seconds, call)
