"""The site turns requests into responses, without Twisted's tree of resources.

A request is routed as soon as its headers have arrived, so a body that is too long is refused
before all of it is read. A complete request runs as one coroutine. This module is the only place
where an exception becomes a response:

- `MatrixError`: its own status and body;
- `RemoteError`: 502, since another server failed, not the client;
- `DatabaseUnavailable`: 503, since a retry may succeed;
- `CancelledError`: 503, if the client is still connected;
- anything else is a bug: 500, with an ID in the body and the traceback under that ID in the log.

When a client disconnects, its handler is cancelled if the endpoint is `cancellable`. Other handlers
run to their end without a response.
"""

import errno
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import BinaryIO, Final, cast

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from federation.api.request import RequestContext
from federation.protocol.errors import (
    MatrixError,
    RemoteError,
    StoreFull,
    StoreUnavailable,
    TooLarge,
    Unrecognized,
)
from homeserver.http.body_budget import FREE_BYTES, BodyBudget, BodyReservation
from homeserver.http.channel import MatrixChannel
from homeserver.http.conditional_requests import (
    ByteRange,
    RangeNotSatisfiable,
    matches_etag,
    parse_range,
)
from homeserver.http.cors import PREFLIGHT_HEADERS
from homeserver.http.page_paths import allows_cors
from homeserver.http.request_head import RequestHead, find_cookies
from homeserver.http.response_head import NO_BODY, ResponseHeadCache, header_lines, status_line
from homeserver.http.responses import (
    JSON_TYPE,
    DatabaseNotReachable,
    FileBody,
    InternalServerError,
    RemoteServerFailed,
    RequestCancelled,
    Response,
    StreamedBody,
    compress,
    encode_body,
    is_worth_compressing,
)
from homeserver.http.router import Match, MethodNotAllowedHere, Router
from homeserver.http.site_options import SiteOptions
from homeserver.http.streaming import ResponseStream, StreamInterrupted, chain_pieces, read_pieces
from homeserver.http.tasks import Task, start_coroutine
from homeserver.observe.access_log import AccessLog, AccessRecord
from homeserver.observe.context import CURRENT_REQUEST
from homeserver.observe.metrics import HttpMetrics
from storage.engine.interface import DatabaseUnavailable

SPOOL_BYTES: Final = 1 << 20
"""A body that is read as a file stays in memory up to this size."""
UNROUTED_MAX_BODY: Final = 65536
_NO_HEADERS: Final[Mapping[str, str]] = {}
_OK: Final = HTTPStatus.OK
"""Accessing a member of an enum class is a function call in Python 3.11, so this is a constant."""
DISCONNECTED: Final = 499
"""The status in metrics and logs if the client disconnected before the response."""


class MatrixRequest:
    """One request, from its headers to its response."""

    __slots__ = (
        "_channel",
        "_chunks",
        "_finished",
        "_has_started",
        "_limit",
        "_lost",
        "_match",
        "_path",
        "_received",
        "_refusal",
        "_reservation",
        "_sending",
        "_site",
        "_task",
        "client_ip",
        "file",
        "head",
        "query",
        "record",
    )

    head: RequestHead
    query: bytes
    client_ip: str
    record: AccessRecord
    """Set when the request is complete or refused."""

    def __init__(self, *, site: "Site", channel: MatrixChannel) -> None:
        self._site = site
        self._channel = channel
        self._match: Match | None = None
        self._refusal: MatrixError | None = None
        self.file: BinaryIO | None = None
        self._reservation: BodyReservation | None = None
        self._task: Task | None = None
        self._sending: ResponseStream | None = None
        self._chunks: list[bytes] = []
        self._limit = UNROUTED_MAX_BODY
        self._received = 0
        self._has_started = False
        self._finished = False
        self._lost = False

    # Called by the channel, in this order.

    def begin(self, head: RequestHead, length: int | None) -> None:
        """Find the endpoint, and refuse a body that is too long for it."""
        self.head = head
        self._path, _, self.query = head.uri.partition(b"?")
        if head.method != "OPTIONS":
            try:
                self._match = self._site.find(head.method, self._path)
            except MatrixError as error:
                self._refusal = error
            else:
                route = self._match.route
                self._limit = self._match.max_body
                if route.binding.takes_file and self._reserve_body(0):
                    self.file = cast(BinaryIO, self._site.options.spool(SPOOL_BYTES))
        if not self._finished and length is not None and length > self._limit:
            self._refuse_body(
                self._refusal or TooLarge(f"The body may have at most {self._limit} bytes")
            )

    def add_body(self, data: bytes) -> None:
        """Store a piece of the body, or refuse a body that became too long."""
        if self._finished:
            return
        self._received += len(data)
        if self._received > self._limit:
            self._refuse_body(
                self._refusal or TooLarge(f"The body may have at most {self._limit} bytes")
            )
        elif self.file is not None:
            self._buffer_in_file(self.file, data)
        elif self._received <= FREE_BYTES or self._reserve_body(len(data)):
            self._chunks.append(data)

    def _reserve_body(self, size: int) -> bool:
        """Count the next `size` bytes of a long body against the budget. Refuse the body and return
        False if its headers or the budget forbid it."""
        assert self._match is not None, "an unrouted body is refused before it is long"
        try:
            if self._reservation is None:
                self._site.router.check_head(
                    self._match, self.head.get(b"authorization"), self.head.uri
                )
                self._reservation = self._site.body_budget.reserve(self._find_client_ip())
            self._reservation.add(size)
        except MatrixError as error:
            self._refuse_body(error)
            return False
        return True

    def _buffer_in_file(self, file: BinaryIO, data: bytes) -> None:
        try:
            file.write(data)
        except OSError as error:
            self._site.log.error("a request body cannot be buffered: {error}", error=error)
            self._refuse_body(
                StoreFull() if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreUnavailable()
            )

    def run(self) -> None:
        """Call the handler: the request is complete."""
        self._begin()
        if self.head.method == "OPTIONS":
            self._write(
                HTTPStatus.NO_CONTENT, PREFLIGHT_HEADERS if allows_cors(self._path) else b"", b""
            )
        elif self._match is None:
            self._respond_error(self._refusal or Unrecognized())
        else:
            if self.file is not None:
                self.file.seek(0)
            self._task = start_coroutine(self._serve(self._match))

    def on_disconnect(self) -> None:
        """The client has disconnected: release the request, and cancel its handler if that is
        allowed."""
        self._lost = True
        if self._task is None:
            self.release_body()
            if self.file is not None:
                self.file.close()
        if self._has_started and not self._finished:
            self.record.status = DISCONNECTED
            self.record.sent = 0 if self._sending is None else self._sending.sent
            self._site.record(self.record)
            if self._sending is not None:
                self._sending.stopProducing()
            if (
                self._task is not None
                and self._match is not None
                and self._match.route.declaration.cancellable
            ):
                self._task.cancel()

    # The life of one request.

    def _begin(self) -> None:
        site = self._site
        head, options = self.head, site.options
        route = None if self._match is None else self._match.route
        self._has_started = True
        site.metrics.in_flight += 1
        self.client_ip = (
            self._find_client_ip() if options.x_forwarded else self._channel.peer_address
        )
        self.record = AccessRecord(
            options.find_request_id(head) or site.next_request_id(),
            "" if route is None else route.name,
            None,
            self.client_ip,
            head.method,
            head.uri,
            route is not None and route.declaration.long_poll,
            self._received,
            site.clock.seconds(),
        )

    def _refuse_body(self, refusal: MatrixError) -> None:
        self._begin()
        self._chunks.clear()
        self.release_body()
        if self.file is not None:
            self.file.close()
        self._channel.refuse()
        self._respond_error(refusal)

    async def _serve(self, match: Match) -> None:
        CURRENT_REQUEST.set(self.record)
        try:
            response = await self._site.router.call(match, self)
            if not isinstance(response, Response):
                self._respond_json(response)
            elif isinstance(response.body, FileBody):
                await self._respond_file(response, response.body)
            elif isinstance(response.body, StreamedBody):
                await self._respond_pieces(response, response.body)
            else:
                self._respond(response)
        except MatrixError as error:
            self._respond_error(error)
        except RemoteError as error:
            self._site.log.info("another server failed: {error}", error=str(error))
            self._respond_error(RemoteServerFailed())
        except DatabaseUnavailable as error:
            self._site.log.error(
                "the database failed request {request_id}: {error}",
                request_id=self.record.request_id,
                error=str(error).strip(),
            )
            self._respond_error(DatabaseNotReachable())
        except CancelledError:
            if not self._lost:
                self._respond_error(RequestCancelled())
        except Exception:
            self._respond_bug()
        finally:
            self.release_body()
            if self.file is not None:
                self.file.close()

    # Called by the router.

    def release_body(self) -> None:
        if self._reservation is not None:
            self._reservation.release()

    def read_body(self) -> bytes:
        if len(self._chunks) > 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0] if self._chunks else b""

    def make_context(self) -> RequestContext:
        head = self.head
        return RequestContext(
            self.record.request_id,
            head.method,
            head.uri,
            self.client_ip,
            head.by_name,
            self._header(b"Content-Type") or "" if self.file is not None else "",
            self._received,
            self._is_secure(),
            find_cookies(head),
        )

    def _is_secure(self) -> bool:
        if self._site.options.x_forwarded:
            proto = self.head.by_name.get(b"x-forwarded-proto")
            if proto:
                return proto.strip().lower() == b"https"
        return self._channel.is_secure

    def _find_client_ip(self) -> str:
        return self._site.options.find_client_ip(self.head, self._channel.peer_address)

    # Responses.

    def _respond_bug(self) -> None:
        self._site.log.failure("request {request_id} failed", request_id=self.record.request_id)
        self._respond_error(InternalServerError(self.record.request_id))

    def _respond_error(self, error: MatrixError) -> None:
        response = self._site.options.make_error_response(self.head, self._path, error)
        if isinstance(error, MethodNotAllowedHere):
            response = Response(
                response.status, {**response.headers, "Allow": error.allow}, response.body
            )
        self._respond(response)

    def _respond_json(self, response: object) -> None:
        """Send the most common response: JSON with status 200 and no headers of its own."""
        site, body = self._site, encode_body(response)
        if (
            not allows_cors(self._path)
            or self.head.method == "HEAD"
            or not self._channel.persistent
            or (site.options.compress and is_worth_compressing(body, JSON_TYPE))
        ):
            self._respond(Response(_OK, _NO_HEADERS, body))
        elif not self._lost:
            head = site.heads.json_head_at(site.clock.seconds())
            self._channel.send(b"%b%d\r\n\r\n%b" % (head, len(body), body))
            self._on_sent(200, len(body))

    def _respond(self, response: Response) -> None:
        body = encode_body(response.body)
        block, content_type = header_lines(
            response.headers, response.cookies, is_open=allows_cors(self._path)
        )
        options = self._site.options
        if options.compress and is_worth_compressing(body, content_type):
            block += b"Vary: Accept-Encoding\r\n"
            if b"gzip" in b",".join(self.head.get(b"accept-encoding")).lower():
                body = compress(body)
                block += b"Content-Encoding: gzip\r\n"
        self._write(response.status, block, body)

    async def _respond_file(self, response: Response, file: FileBody) -> None:
        """Send a file, the requested range of it, or 304 if the client has it."""
        try:
            block, _ = header_lines(response.headers, is_open=allows_cors(self._path))
            etag = f'"{file.etag}"'
            block += b"Accept-Ranges: bytes\r\nETag: %s\r\n" % etag.encode()
            status, part = response.status, ByteRange(0, file.size)
            if matches_etag(self._header_lines(b"If-None-Match"), etag):
                self._write(HTTPStatus.NOT_MODIFIED, block, b"")
                return
            asked = self._header(b"Range")
            if asked is not None and self.head.method == "GET":
                try:
                    found = parse_range(asked, self._header(b"If-Range"), etag, file.size)
                except RangeNotSatisfiable:
                    block += b"Content-Range: bytes */%d\r\n" % file.size
                    self._write(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, block, b"")
                    return
                if found is not None:
                    status, part = HTTPStatus.PARTIAL_CONTENT, found
                    block += b"Content-Range: bytes %d-%d/%d\r\n" % (
                        part.start,
                        part.end - 1,
                        file.size,
                    )
            head = self._head(status, block, b"Content-Length: %d\r\n" % (part.end - part.start))
            end = part.start if self.head.method == "HEAD" else part.end
            await self._stream(status, head, read_pieces(file.source, part.start, end))
        finally:
            file.source.close()

    async def _respond_pieces(self, response: Response, body: StreamedBody) -> None:
        """Send a body that is made while it is sent. A single piece is sent at once, with its
        length."""
        first = await anext(body.pieces, b"")
        second = await anext(body.pieces, None)
        if second is None:
            self._respond(Response(response.status, response.headers, first))
            return
        if self._lost:
            return
        block, _ = header_lines(response.headers, is_open=allows_cors(self._path))
        in_chunks = self.head.accepts_chunks
        if not in_chunks:
            self._channel.persistent = False
        head = self._head(
            response.status, block, b"Transfer-Encoding: chunked\r\n" if in_chunks else b""
        )
        if self.head.method == "HEAD":
            self._channel.send(head)
            self._on_sent(response.status, 0)
        else:
            await self._stream(
                response.status,
                head,
                chain_pieces((first, second), body.pieces),
                in_chunks=in_chunks,
            )

    async def _stream(
        self, status: int, head: bytes, pieces: AsyncIterator[bytes], *, in_chunks: bool = False
    ) -> None:
        if self._lost:
            return
        stream = self._sending = ResponseStream(channel=self._channel, clock=self._site.clock)
        try:
            await stream.run(head, pieces, in_chunks=in_chunks)
        except Exception as error:
            # The head has announced more bytes, so only an aborted connection can signal the
            # failure.
            self._log_end(error)
            self._channel.abort()
            return
        self._on_sent(status, stream.sent)

    def _log_end(self, error: Exception) -> None:
        """Log why a response ended early: its source may have been deleted or become
        unreachable."""
        if isinstance(error, DatabaseUnavailable):
            self._site.log.error(
                "the database failed during the response to {request_id}: {error}",
                request_id=self.record.request_id,
                error=str(error).strip(),
            )
        elif isinstance(error, MatrixError):
            self._site.log.info(
                "the response to {request_id} was cut short: {error}",
                request_id=self.record.request_id,
                error=str(error),
            )
        elif not isinstance(error, (StreamInterrupted, CancelledError)):
            self._site.log.failure(
                "the response to {request_id} failed while it was sent",
                request_id=self.record.request_id,
            )

    def _header(self, name: bytes) -> str | None:
        value = self.head.by_name.get(name.lower())
        return None if value is None else value.decode("latin-1")

    def _header_lines(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for value in self.head.get(name.lower())]

    def _write(self, status: int, block: bytes, body: bytes) -> None:
        """Write the complete response at once."""
        if self._lost:
            return
        length = b"" if status in NO_BODY else b"Content-Length: %d\r\n" % len(body)
        head = self._head(status, block, length)
        has_body = self.head.method != "HEAD" and status not in NO_BODY
        self._channel.send(head + body if has_body else head)
        self._on_sent(status, len(body) if has_body else 0)

    def _head(self, status: int, block: bytes, length: bytes) -> bytes:
        """Return the response head. `length` is the header line that says where the body ends."""
        date = self._site.heads.date_line_at(self._site.clock.seconds())
        connection = b"" if self._channel.persistent else b"Connection: close\r\n"
        return b"%b%b%b%b%b\r\n" % (status_line(status), date, block, length, connection)

    def _on_sent(self, status: int, sent: int) -> None:
        self._finished = True
        record = self.record
        record.status, record.sent = status, sent
        self._site.record(record)
        self._channel.done()


class Site(ServerFactory):
    """Makes the connections of one listener."""

    noisy = False
    """Suppresses Twisted's start and stop messages: the server logs the address itself."""

    def __init__(
        self,
        *,
        router: Router,
        clock: IReactorTime,
        metrics: HttpMetrics,
        access_log: AccessLog,
        next_request_id: Callable[[], str],
        body_budget: BodyBudget | None = None,
        options: SiteOptions | None = None,
    ) -> None:
        """`body_budget`: shared by all sites of a server."""
        self.router = router
        self.clock = clock
        self.metrics = metrics
        self.options = options or SiteOptions()
        self.body_budget = body_budget or BodyBudget(clock=clock)
        self.next_request_id = next_request_id
        self.log = Logger(namespace="homeserver.http")
        self._access_log = access_log
        self._found: dict[tuple[str, bytes], Match] = {}
        """Matches of paths without parameters."""
        self.heads = ResponseHeadCache()

    def buildProtocol(self, _addr: IAddress | None) -> MatrixChannel:
        return MatrixChannel(
            clock=self.clock,
            make_exchange=self._make_request,
            idle_timeout=self.options.idle_timeout,
            max_header_bytes=self.options.max_header_bytes,
        )

    def _make_request(self, channel: MatrixChannel) -> MatrixRequest:
        return MatrixRequest(site=self, channel=channel)

    def find(self, method: str, path: bytes) -> Match:
        """Find the endpoint, if this listener serves it. Raises as `Router.find` does."""
        match = self._found.get((method, path))
        if match is not None:
            return match
        match = self.router.find(method, path)
        resources = self.options.resources
        if resources is not None and match.route.declaration.resource not in resources:
            raise Unrecognized
        if match.route.path.encode() == path and match.route.declaration.method == method:
            self._found[method, path] = match
        return match

    def record(self, record: AccessRecord) -> None:
        """Count and log a request that has just ended."""
        record.ended = self.clock.seconds()
        self.metrics.finished(record)
        self._access_log.write(record)
