"""Which request the code that runs now works for.

A context variable holds it: it survives every `await`, is separate for each coroutine, and follows into threads
where those run in a copy of the context. Logs take their fields from here.
"""

from contextvars import ContextVar
from typing import Final

import msgspec


class RequestInfo(msgspec.Struct):
    """What is known of the request: the caller once the guard has found out."""

    request_id: str
    endpoint: str
    caller: str | None = None


CURRENT: Final[ContextVar[RequestInfo | None]] = ContextVar("request", default=None)
