"""The type `Response`, with a status, headers and a body, and the types of streamed bodies."""

from collections.abc import AsyncIterator, Awaitable, Mapping
from http import HTTPStatus
from typing import Protocol

import msgspec


class FileSource(Protocol):
    """A readable source of a file's bytes."""

    def read(self, offset: int, size: int) -> Awaitable[bytes]:
        """Return up to `size` bytes from `offset`; nothing at the end."""
        ...

    def close(self) -> None:
        """Release the source. Nothing is read afterwards."""
        ...


class FileBody(msgspec.Struct, frozen=True):
    """A body that is streamed from a source. The HTTP server closes the source, and handles ranges
    and conditional requests."""

    source: FileSource
    size: int
    etag: str
    """Changes when the bytes change. Contains no quotes."""


class StreamedBody(msgspec.Struct, frozen=True):
    """A streamed body of unknown length. Each piece is produced after the client has received the
    previous one."""

    pieces: AsyncIterator[bytes]
    """If it raises before the first piece, the error becomes the response. Later the connection is
    closed, so that nobody mistakes a partial body for a complete one."""


class Response(msgspec.Struct, frozen=True, gc=False):
    """A response with its own status and headers. A body other than bytes, `FileBody` and
    `StreamedBody` is encoded as JSON."""

    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    body: object = b""
    cookies: tuple[str, ...] = ()
    """The values of `Set-Cookie` headers."""
