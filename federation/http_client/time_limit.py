"""Time limits for work that waits for remote servers."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from federation.http_client.errors import CancelledResponse, OutboundError

T = TypeVar("T")


async def within(clock: IReactorTime, seconds: float, work: Coroutine[Deferred[Any], Any, T]) -> T:
    """Return the result of the work. After `seconds`, cancel it and raise OutboundError."""

    def end(result: T | Failure, _seconds: float) -> T:
        if not isinstance(result, Failure):
            return result
        cause = result.value
        status = cause.status if isinstance(cause, CancelledResponse | OutboundError) else None
        raise OutboundError(f"it did not answer within {seconds:g} seconds", status=status)

    return await Deferred.fromCoroutine(work).addTimeout(seconds, clock, end)
