"""What a handler may answer, and how it becomes bytes, once.

A msgspec Struct, a mapping or a list is encoded as JSON; `bytes` and `msgspec.Raw` are JSON that is
encoded already; `Response` says everything itself, and its body may be a `File`, which is sent as
it is read, or `Pieces`, which are sent as they are made.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

import msgspec

from federation.api.responses import File as File
from federation.api.responses import Pieces as Pieces
from federation.api.responses import Response as Response
from federation.api.responses import Source as Source
from federation.protocol.errors import LimitExceeded, MatrixError

Json = Mapping[str, object]
JSON_TYPE: Final = "application/json"


class Empty(msgspec.Struct, frozen=True):
    """`{}`"""


EMPTY: Final = Empty()


class MemorySource:
    """A source of bytes that are there already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def close(self) -> None:
        self._data = b""


class OtherServerFailed(MatrixError):
    status, default_text = 502, "Another server could not be asked, or answered wrongly"


class DatabaseAway(MatrixError):
    status, default_text = 503, "The server's database cannot be reached now; try again"

    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class GivenUp(MatrixError):
    status, default_text = 503, "The server gave up on this request; try again"


class Bug(MatrixError):
    """Something went wrong that nobody expected."""

    status = 500

    def __init__(self, request_id: str) -> None:
        text = f"Internal server error; the administrator finds it in the log as {request_id}"
        super().__init__(text, request_id=request_id)


_encoder = msgspec.json.Encoder()


def encode_body(answer: object) -> bytes:
    """The bytes of an answer. Raises TypeError for what is not JSON: a bug of the handler."""
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, msgspec.Raw):
        return bytes(answer)
    return _encoder.encode(answer)


def error_response(error: MatrixError) -> Response:
    """The answer that says no. spec: client-server-api#standard-error-response"""
    headers = dict(error.headers)
    if isinstance(error, LimitExceeded):
        retry_after_ms = error.fields.get("retry_after_ms")
        if isinstance(retry_after_ms, int):
            headers["Retry-After"] = str(max(1, -(-retry_after_ms // 1000)))
    return Response(error.status, headers, _encoder.encode(error.body()))
