"""Response bodies, their compression, and error responses.

If a handler raises anything but a `MatrixError`, `site.py` sends one of the errors defined here.

A handler returns a msgspec Struct, a mapping or a list, which is encoded as JSON; `bytes` or
`msgspec.Raw`, which are JSON already; or a `Response` with a status, headers and any body. A
`FileBody` body is streamed as it is read, a `StreamedBody` body as it is made. Any other body of
JSON or text that is longer than one packet is compressed with gzip at level 1, if the listener's
options and the client allow it.
"""

import zlib
from collections.abc import Mapping
from typing import ClassVar, Final

import msgspec

from federation.api.responses import FileBody as FileBody
from federation.api.responses import FileSource as FileSource
from federation.api.responses import Response as Response
from federation.api.responses import StreamedBody as StreamedBody
from federation.protocol.errors import LimitExceeded, MatrixError

Json = Mapping[str, object]
JSON_TYPE: Final = "application/json"
MIN_COMPRESSED_BYTES: Final = 1400
"""Shorter bodies fit in one packet."""
_COMPRESSION_LEVEL: Final = 1
_GZIP: Final = 31


class Empty(msgspec.Struct, frozen=True):
    """An empty JSON object: `{}`."""


EMPTY: Final = Empty()


class MemorySource:
    """A source of bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def close(self) -> None:
        self._data = b""


class RemoteServerFailed(MatrixError):
    status, default_text = 502, "Another server could not be reached, or gave an invalid response"


class DatabaseNotReachable(MatrixError):
    status, default_text = 503, "The server cannot reach its database; try again"

    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class RequestCancelled(MatrixError):
    status, default_text = 503, "The server cancelled this request; try again"


class InternalServerError(MatrixError):
    """An unexpected exception, which is a bug."""

    status = 500

    def __init__(self, request_id: str) -> None:
        text = f"Internal server error; it is in the server's log as {request_id}"
        super().__init__(text, request_id=request_id)


_encoder = msgspec.json.Encoder()


def encode_body(response: object) -> bytes:
    """Encode a response body. Raises TypeError if it is not JSON, which is a bug of the handler."""
    if isinstance(response, bytes):
        return response
    if isinstance(response, msgspec.Raw):
        return bytes(response)
    return _encoder.encode(response)


def is_worth_compressing(body: bytes, content_type: str) -> bool:
    """Return whether compressing a body of this type is worth it."""
    return len(body) >= MIN_COMPRESSED_BYTES and content_type.startswith(
        ("application/json", "text/", "application/javascript")
    )


def compress(body: bytes) -> bytes:
    """Return the body as a gzip stream."""
    compressor = zlib.compressobj(_COMPRESSION_LEVEL, zlib.DEFLATED, _GZIP)
    return compressor.compress(body) + compressor.flush()


def error_response(error: MatrixError) -> Response:
    """Return the response for an error. spec: client-server-api#standard-error-response"""
    headers = dict(error.headers)
    if isinstance(error, LimitExceeded):
        retry_after_ms = error.fields.get("retry_after_ms")
        if isinstance(retry_after_ms, int):
            headers["Retry-After"] = str(max(1, -(-retry_after_ms // 1000)))
    return Response(error.status, headers, _encoder.encode(error.body()))
