"""Which request the code that runs now works for.

A context variable holds it: it survives every `await`, is separate for each coroutine, and follows
into threads where those run in a copy of the context. Logs take their fields from here.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from itertools import chain, count
from typing import Final

import msgspec


class RequestInfo(msgspec.Struct):
    """What is known of the request: the caller once the guard has found out."""

    request_id: str
    endpoint: str
    caller: str | None = None


IDS_AT_ONCE: Final = 64

CURRENT: Final[ContextVar[RequestInfo | None]] = ContextVar("request", default=None)


def make_request_ids() -> Iterator[str]:
    """Ids for the requests of a process: numbers, of which some are written at once."""
    return chain.from_iterable(
        [f"{number:x}" for number in range(first, first + IDS_AT_ONCE)]
        for first in count(1, IDS_AT_ONCE)
    )
