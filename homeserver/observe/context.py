"""Stores the current request in a context variable (`contextvars`).

The value survives every `await`, is separate for each request, and is visible in threads that run
in a copy of the context. Log events get the ID, endpoint and caller of the request from it.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from itertools import chain, count
from typing import Final

import msgspec


class RequestInfo(msgspec.Struct):
    """The current request. `caller` is set when the request is authenticated."""

    request_id: str
    endpoint: str
    caller: str | None = None


BLOCK_SIZE: Final = 64

CURRENT_REQUEST: Final[ContextVar[RequestInfo | None]] = ContextVar("request", default=None)


def make_request_ids() -> Iterator[str]:
    """Yield request IDs, unique in a process: hexadecimal numbers, formatted in blocks."""
    return chain.from_iterable(
        [f"{number:x}" for number in range(first, first + BLOCK_SIZE)]
        for first in count(1, BLOCK_SIZE)
    )
