"""The site: twisted.web's HTTP channel, without its tree of resources.

A request is routed as soon as its headers are there, so that a body too long is refused before it is read. A request
that is whole runs as one coroutine. This is the only place where an exception becomes an answer:

- `MatrixError`: its own status and body;
- `RemoteError`: 502, since another server failed, not the client;
- `DatabaseUnavailable`: 503, since the request may be repeated and then go well;
- anything else is a bug: 500, with an id in the body and the traceback under that id in the log.

A client that goes away cancels its handler where the endpoint is `cancellable`; others run to their end, unheard.
"""

# mypy: allow-untyped-calls

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Final, cast
from wsgiref.handlers import format_date_time

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request

from federation.protocol.errors import MatrixError, RemoteError, TooLarge, Unrecognized
from homeserver.http.addresses import Networks, forwarded_address
from homeserver.http.answers import Response, encode_body, error_response
from homeserver.http.channel import MatrixChannel
from homeserver.http.compression import compress, pays
from homeserver.http.cors import PREFLIGHT_HEADERS
from homeserver.http.endpoint import RequestContext
from homeserver.http.router import Incoming, Match, MethodRefused, Router
from homeserver.http.wire import NO_BODY, header_lines, status_line
from homeserver.observe.access import AccessLog, AccessRecord
from homeserver.observe.context import CURRENT, RequestInfo
from homeserver.observe.metrics import HttpMetrics
from storage.engine import DatabaseUnavailable

SPOOL_BYTES: Final = 1 << 20
"""A body that is read as a file stays in memory up to here."""
UNROUTED_MAX_BODY: Final = 65536
_NOTHING: Final[list[bytes]] = []
_NO_HEADERS: Final[Mapping[str, str]] = {}
DISCONNECTED: Final = 499
"""What metrics and logs say of a request whose client went away first."""


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """How one listener answers."""

    resources: frozenset[str] | None = None
    """Which groups of endpoints are served; None: all."""
    x_forwarded: bool = False
    trusted_proxies: Networks = ()
    request_id_header: str | None = None
    compress: bool = False
    idle_timeout: int = 60
    """Seconds without a byte, while no request is being answered."""
    max_header_bytes: int = 16384


class MatrixRequest(Request):
    """One request, from its headers to its answer."""

    channel: "MatrixChannel"
    _match: Match | None = None
    _refusal: MatrixError | None = None
    _file: BinaryIO | None = None
    _task: Deferred[None] | None = None
    _limit = UNROUTED_MAX_BODY
    _received = 0
    _started_at = 0.0
    _request_id = ""
    _client_ip = ""
    _caller: str | None = None

    # What the channel calls, in this order.

    def gotLength(self, length: int | None) -> None:
        """The headers are there: find the endpoint, and refuse a body that is too long for it."""
        channel = self.channel
        self._site = channel.factory
        self._chunks: list[bytes] = []
        self.method = channel._command
        self.uri = channel._path
        self.clientproto = channel._version
        self.path, _, self._query = self.uri.partition(b"?")
        if self.method != b"OPTIONS":
            try:
                self._match = self._site.find(self.method.decode("ascii"), self.path)
            except MatrixError as error:
                self._refusal = error
            else:
                route = self._match.route
                self._limit = route.declaration.max_body
                if route.binding.takes_file:
                    self._file = cast(BinaryIO, SpooledTemporaryFile(SPOOL_BYTES))  # noqa: SIM115 - closed with the request
        if length is not None and length > self._limit:
            self._refuse_body()

    def handleContentChunk(self, data: bytes) -> None:
        if self.finished:
            return
        self._received += len(data)
        if self._received > self._limit:
            self._refuse_body()
        elif self._file is not None:
            self._file.write(data)
        else:
            self._chunks.append(data)

    def requestReceived(self, _command: bytes, _path: bytes, _version: bytes) -> None:
        self._begin()
        if self.method == b"OPTIONS":
            self._write(HTTPStatus.NO_CONTENT, PREFLIGHT_HEADERS, b"")
        elif self._match is None:
            self._respond_error(self._refusal or Unrecognized())
        else:
            self._task = Deferred.fromCoroutine(self._serve(self._match))

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        if self._task is None and self._file is not None:
            self._file.close()
        if self._request_id and not self.finished:
            self._site.observed(self._record(DISCONNECTED, 0))
            if self._task is not None and self._match is not None and self._match.route.declaration.cancellable:
                self._task.cancel()

    # The way of one request.

    def _begin(self) -> None:
        site = self._site
        self._started_at = site.clock.seconds()
        site.metrics.started()
        self._request_id = self._given_id() or site.next_request_id()
        self._client_ip = self._find_client_ip()

    def _refuse_body(self) -> None:
        self._begin()
        self.requestHeaders.removeHeader(b"Expect")
        self.channel.refuse()
        self._respond_error(self._refusal or TooLarge(f"The body may have {self._limit} bytes at most"))

    async def _serve(self, match: Match) -> None:
        declaration = match.route.declaration
        info = RequestInfo(self._request_id, declaration.name)
        CURRENT.set(info)
        try:
            answer = await self._site.router.call(match, self._incoming())
            if isinstance(answer, Response):
                response = answer
            else:
                response = Response(HTTPStatus.OK, _NO_HEADERS, encode_body(answer))
            self._caller = info.caller
            self._respond(response)
        except MatrixError as error:
            self._caller = info.caller
            self._respond_error(error)
        except RemoteError as error:
            self._caller = info.caller
            self._site.log.info("another server failed: {error}", error=str(error))
            body = {"errcode": "M_UNKNOWN", "error": "Another server could not be asked, or answered wrongly"}
            self._respond(Response(HTTPStatus.BAD_GATEWAY, {}, body))
        except DatabaseUnavailable as error:
            self._caller = info.caller
            self._site.log.error("the database failed request {request_id}: {error}", error=str(error))
            body = {"errcode": "M_UNKNOWN", "error": "The server's database cannot be reached now; try again"}
            self._respond(Response(HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"}, body))
        except CancelledError:
            if not self._disconnected:
                body = {"errcode": "M_UNKNOWN", "error": "The server gave up on this request; try again"}
                self._respond(Response(HTTPStatus.SERVICE_UNAVAILABLE, {}, body))
        except Exception:
            self._caller = info.caller
            self._respond_bug()
        finally:
            if self._file is not None:
                self._file.close()

    def _incoming(self) -> Incoming:
        headers = self.requestHeaders
        agent = headers.getRawHeaders(b"User-Agent")
        context = RequestContext(
            request_id=self._request_id,
            method=self.method.decode("ascii"),
            path=self.path.decode("latin-1"),
            client_ip=self._client_ip,
            user_agent=agent[-1].decode("utf-8", "replace")[:500] if agent else "",
            is_secure=self._is_secure(),
            cookies=tuple(
                (name.strip().decode("latin-1"), value.decode("latin-1"))
                for name, value in self.received_cookies.items()
            ),
        )
        if self._file is not None:
            self._file.seek(0)
        chunks, self._chunks = self._chunks, []
        return Incoming(
            context=context,
            uri=self.uri.decode("latin-1"),
            query=self._query,
            authorization=[
                value.decode("utf-8", "replace") for value in headers.getRawHeaders(b"Authorization", _NOTHING)
            ],
            body=chunks[0] if len(chunks) == 1 else b"".join(chunks),
            file=self._file,
        )

    def _is_secure(self) -> bool:
        if self._site.options.x_forwarded:
            proto = self.requestHeaders.getRawHeaders(b"X-Forwarded-Proto")
            if proto:
                return proto[-1].strip().lower() == b"https"
        return bool(self.channel.isSecure())

    def _find_client_ip(self) -> str:
        options = self._site.options
        if options.x_forwarded:
            headers = self.requestHeaders.getRawHeaders(b"X-Forwarded-For")
            if headers:
                found = forwarded_address([value.decode("latin-1") for value in headers], options.trusted_proxies)
                if found is not None:
                    return found
        return self.channel.peer_address

    def _given_id(self) -> str | None:
        name = self._site.options.request_id_header
        if name is None:
            return None
        values = self.requestHeaders.getRawHeaders(name.encode())
        text = values[-1].decode("latin-1") if values else ""
        return text if 0 < len(text) <= 64 and text.isascii() and text.replace("-", "").isalnum() else None

    # Answers.

    def _respond_bug(self) -> None:
        self._site.log.failure("request {request_id} failed", request_id=self._request_id)
        body = {
            "errcode": "M_UNKNOWN",
            "error": f"Internal server error; the administrator finds it in the log as {self._request_id}",
            "request_id": self._request_id,
        }
        self._respond(Response(HTTPStatus.INTERNAL_SERVER_ERROR, {}, body))

    def _respond_error(self, error: MatrixError) -> None:
        response = error_response(error)
        if isinstance(error, MethodRefused):
            response = Response(response.status, {"Allow": error.allow}, response.body)
        self._respond(response)

    def _respond(self, response: Response) -> None:
        body = encode_body(response.body)
        block, content_type = header_lines(response.headers)
        options = self._site.options
        if options.compress and pays(body, content_type):
            block += b"Vary: Accept-Encoding\r\n"
            if b"gzip" in b",".join(self.requestHeaders.getRawHeaders(b"Accept-Encoding", _NOTHING)).lower():
                body = compress(body)
                block += b"Content-Encoding: gzip\r\n"
        self._write(response.status, block, body)

    def _write(self, status: int, block: bytes, body: bytes) -> None:
        """Write the whole answer at once."""
        if self._disconnected:
            return
        site = self._site
        parts = [status_line(status), site.date_header(), block]
        if status not in NO_BODY:
            parts.append(b"Content-Length: %d\r\n" % len(body))
        if not self.channel.persistent:
            parts.append(b"Connection: close\r\n")
        parts.append(b"\r\n")
        sent = 0
        if self.method != b"HEAD" and status not in NO_BODY:
            parts.append(body)
            sent = len(body)
        self.channel.send(b"".join(parts), at_once=not self.requestHeaders.hasHeader(b"Expect"))
        self.code = status
        self.startedWriting = 1
        self.finished = 1
        self.sentLength = sent
        site.observed(self._record(status, sent))
        self._cleanup()

    def _record(self, status: int, sent: int) -> AccessRecord:
        route = None if self._match is None else self._match.route
        return AccessRecord(
            request_id=self._request_id,
            client_ip=self._client_ip,
            caller=self._caller,
            method=self.method.decode("ascii"),
            uri=self.uri.decode("latin-1"),
            endpoint="" if route is None else route.declaration.name,
            long_poll=route is not None and route.declaration.long_poll,
            status=status,
            seconds=self._site.clock.seconds() - self._started_at,
            received=self._received,
            sent=sent,
        )


class Site(ServerFactory):
    """Makes the connections of one listener."""

    def __init__(
        self,
        router: Router,
        clock: IReactorTime,
        *,
        metrics: HttpMetrics,
        access_log: AccessLog,
        next_request_id: Callable[[], str],
        options: SiteOptions | None = None,
    ) -> None:
        self.router = router
        self.clock = clock
        self.metrics = metrics
        self.options = options or SiteOptions()
        self.next_request_id = next_request_id
        self.log = Logger(namespace="homeserver.http")
        self._access_log = access_log
        self._date = (0, b"")

    def buildProtocol(self, _addr: IAddress | None) -> MatrixChannel:
        channel = MatrixChannel(self, self.clock, MatrixRequest)
        channel.timeOut = self.options.idle_timeout
        channel.totalHeadersSize = self.options.max_header_bytes
        return channel

    def find(self, method: str, path: bytes) -> Match:
        """The endpoint, if this listener serves it. Raises as `Router.find` does."""
        match = self.router.find(method, path)
        resources = self.options.resources
        if resources is not None and match.route.declaration.resource not in resources:
            raise Unrecognized
        return match

    def observed(self, record: AccessRecord) -> None:
        """Count and log a request that has ended."""
        self.metrics.finished(
            record.endpoint or "none", record.method if record.endpoint else "other", record.status, record.seconds
        )
        self._access_log.write(record)

    def date_header(self) -> bytes:
        """The `Date` header, made once a second."""
        now = int(self.clock.seconds())
        if self._date[0] != now or not self._date[1]:
            self._date = (now, f"Date: {format_date_time(now)}\r\n".encode())
        return self._date[1]
