"""Downloads a file from the server that owns it into a sink, without holding it in memory.

Laws:
- The signed endpoint is used first. A server that does not support it gets a request to the older
  endpoint, with the instruction to return only its own files.
- Redirects are followed over https only, and only to addresses that this server may contact.
- A response that is incomplete, malformed or too long raises an error, even if the sink has
  received data before.

spec: server-server-api#content-repository
"""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final, Protocol

import msgspec

from federation.http_client.body import TakeBody
from federation.http_client.errors import OutboundError
from federation.peers.client import FederationClient, Query, RefusedByRemote, make_path
from federation.protocol.errors import RemoteError
from federation.protocol.ids import ServerName
from federation.protocol.multipart import BadMultipart, MultipartFile

ENVELOPE_BYTES: Final = 128 << 10
"""Bytes of a multipart response besides the file."""
UNSIGNED_PATH: Final = "/_matrix/media/v3/download/{}/{}"
SIGNED_PATH: Final = "/_matrix/federation/v1/media/download/{}"

Follow = Callable[[str, TakeBody, float, int], Awaitable[int]]
"""GETs a URL with time and size limits, and returns the status. Raises OutboundError."""


class RemoteFileTooLarge(RemoteError):
    """The file is larger than the limit."""

    def __init__(self, destination: str, max_bytes: int) -> None:
        super().__init__(destination, f"the file is longer than {max_bytes} bytes", retryable=False)


class FileSink(Protocol):
    """Receives a file."""

    def start(self) -> None:
        """Start a response. Discard the data of an earlier one."""
        ...

    def write(self, data: bytes) -> None:
        """Write the next bytes. Raises OSError."""
        ...


class FileHeaders(msgspec.Struct, frozen=True):
    """The headers of a file, as sent by the other server. Untrusted."""

    type: str
    disposition: str


class MediaClient:
    """Downloads files."""

    def __init__(self, *, requests: FederationClient, follow: Follow) -> None:
        self._requests = requests
        self._follow = follow

    async def download(
        self,
        server: ServerName,
        media_id: str,
        sink: FileSink,
        *,
        timeout_ms: int,
        seconds: float,
        max_bytes: int,
    ) -> FileHeaders:
        """Download a file.

        `timeout_ms`: time that the other server may wait for the upload. `seconds`: limit for each
        response. Raises RefusedByRemote, RemoteFileTooLarge, another RemoteError, Forbidden (the
        policy), OSError (the sink).
        """
        receiver = _Receiver(server=server, sink=sink, max_bytes=max_bytes)
        limits = (seconds, max_bytes + ENVELOPE_BYTES)
        try:
            await self._download_by_either(server, media_id, timeout_ms, receiver, limits)
        except RemoteError:
            receiver.raise_problem()
            raise
        return await self._finish(receiver, limits)

    async def _download_by_either(
        self,
        server: ServerName,
        media_id: str,
        timeout_ms: int,
        receiver: "_Receiver",
        limits: tuple[float, int],
    ) -> None:
        query: Query = (("timeout_ms", str(timeout_ms)),)
        try:
            await self._download(
                server,
                make_path(SIGNED_PATH, media_id),
                query,
                receiver.take_multipart,
                limits,
                signed=True,
            )
        except RefusedByRemote as error:
            if not _is_unknown_endpoint(error):
                raise
            path = make_path(UNSIGNED_PATH, server, media_id)
            query = (("allow_remote", "false"), *query)
            await self._download(server, path, query, receiver.take_plain, limits, signed=False)

    async def _download(
        self,
        server: ServerName,
        path: str,
        query: Query,
        take: TakeBody,
        limits: tuple[float, int],
        *,
        signed: bool,
    ) -> None:
        seconds, max_bytes = limits
        await self._requests.download(
            server, path, query, take, seconds=seconds, max_bytes=max_bytes, signed=signed
        )

    async def _finish(self, receiver: "_Receiver", limits: tuple[float, int]) -> FileHeaders:
        receiver.check_complete()
        location = receiver.location
        if location is None:
            return receiver.headers
        try:
            status = await self._follow(location, receiver.take_plain, *limits)
        except OutboundError as error:
            receiver.raise_problem()
            raise RemoteError(
                receiver.server,
                f"the file is at another address, which failed: {error}",
                retryable=error.retryable,
            ) from error
        if status != HTTPStatus.OK:
            raise RemoteError(
                receiver.server,
                f"the file is at another address, which answered {status}",
                retryable=False,
            )
        return receiver.headers


class _Receiver:
    """Reads the responses for one file."""

    def __init__(self, *, server: ServerName, sink: FileSink, max_bytes: int) -> None:
        self.server = server
        self.location: str | None = None
        self.headers = FileHeaders("", "")
        self._sink = sink
        self._max_bytes = max_bytes
        self._size = 0
        self._multipart: MultipartFile | None = None
        self._error: Exception | None = None

    def take_multipart(self, _status: int, headers: Mapping[str, str]) -> Callable[[bytes], None]:
        self._begin()
        try:
            self._multipart = multipart = MultipartFile(
                headers.get("content-type", ""), self._begin_file, self._write
            )
        except BadMultipart as error:
            raise self._fail(RemoteError(self.server, str(error), retryable=False)) from error

        def take(data: bytes) -> None:
            try:
                multipart.take(data)
            except BadMultipart as error:
                raise self._fail(RemoteError(self.server, str(error), retryable=False)) from error

        return take

    def take_plain(self, status: int, headers: Mapping[str, str]) -> Callable[[bytes], None] | None:
        if status != HTTPStatus.OK:
            return None  # a redirect, which the client follows, or an error
        self._begin()
        self._begin_file(headers)
        length = headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) > self._max_bytes:
            raise self._fail(RemoteFileTooLarge(self.server, self._max_bytes))
        return self._write

    def check_complete(self) -> None:
        """Raise RemoteError for an incomplete response."""
        if self._multipart is not None and not self._multipart.is_whole:
            raise RemoteError(
                self.server, "the answer ends before its last boundary", retryable=False
            )
        if self.location is not None and self._size:
            raise RemoteError(
                self.server, "the answer holds a file and a redirect", retryable=False
            )

    def raise_problem(self) -> None:
        """Raise the error of the body, if that ended the exchange."""
        if self._error is not None:
            raise self._error

    def _begin(self) -> None:
        """Start a new response."""
        self._multipart = None
        self._size = 0
        self._sink.start()

    def _begin_file(self, headers: Mapping[str, str]) -> None:
        self.location = headers.get("location") if self._multipart is not None else None
        self.headers = FileHeaders(
            headers.get("content-type", ""), headers.get("content-disposition", "")
        )

    def _write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._max_bytes:
            raise self._fail(RemoteFileTooLarge(self.server, self._max_bytes))
        try:
            self._sink.write(data)
        except OSError as error:
            raise self._fail(error) from error

    def _fail(self, problem: Exception) -> OutboundError:
        """Record an error that ends the exchange. `raise_problem` raises it to the caller."""
        self._error = problem
        return OutboundError(str(problem), retryable=False)


def _is_unknown_endpoint(error: RefusedByRemote) -> bool:
    """Return whether the server, or a proxy in front of it, does not know the endpoint."""
    if error.errcode == "M_UNRECOGNIZED":
        return error.status in (400, 404, 405)
    return error.status == 404 and error.errcode == "M_UNKNOWN"
