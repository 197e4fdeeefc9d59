"""What an endpoint answers when it is more than a value: a status and headers of its own, or a body
too long for memory."""

from collections.abc import AsyncIterator, Awaitable, Mapping
from http import HTTPStatus
from typing import Protocol

import msgspec


class Source(Protocol):
    """Where the bytes of a file come from."""

    def read(self, offset: int, size: int) -> Awaitable[bytes]:
        """From there on so many bytes, or fewer; none at the end."""
        ...

    def close(self) -> None:
        """Nothing more will be read."""
        ...


class File(msgspec.Struct, frozen=True):
    """A body that does not fit into memory. The site closes its source, and serves ranges and
    conditions of it."""

    source: Source
    size: int
    etag: str
    """Changes when the bytes do; without quotes, and with none inside."""


class Pieces(msgspec.Struct, frozen=True):
    """A body that is made as it is sent, and of whose length nobody knows before: each piece once
    the client takes it."""

    pieces: AsyncIterator[bytes]
    """If it raises before the first one, that is the answer; afterwards the connection ends, so
    that nobody takes the rest for all."""


class Response(msgspec.Struct, frozen=True, gc=False):
    """An answer with a status and headers of its own. A body that is neither bytes, `File` nor
    `Pieces` is encoded as JSON."""

    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    body: object = b""
    cookies: tuple[str, ...] = ()
    """The values of headers `Set-Cookie`."""
