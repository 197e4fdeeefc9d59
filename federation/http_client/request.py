"""A request in the bytes of HTTP/1.1, and time limits for what may be slow on purpose."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from federation.http_client.errors import CutOff, OutboundError

T = TypeVar("T")

REPEATABLE: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
"""Methods that do no more when they are repeated: RFC 9110 section 9.2.2."""
TakeBody = Callable[[int, Mapping[str, str]], Callable[[bytes], None] | None]
"""Asked with status and headers when the head of an answer is there: whom to give the body, piece
by piece, so that it is never whole in memory; None for an answer that is kept in memory as others
are. Both may raise OutboundError to end it."""
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


def encode_request(
    method: str, target: str, host: str, headers: Sequence[tuple[str, str]], body: bytes
) -> bytes:
    """The bytes. Raises ValueError where a part would break out of its line, which is our
    mistake."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Accept-Encoding: gzip"]
    if not any(name.lower() == "user-agent" for name, _ in headers):
        lines.append("User-Agent: Mahalla")
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method in _WITH_BODY:
        lines.append(f"Content-Length: {len(body)}")
    if (
        any("\r" in line or "\n" in line or "\0" in line for line in lines)
        or " " in target
        or " " in host
    ):
        raise ValueError("a part of a request may not break its line")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


async def within(clock: IReactorTime, seconds: float, work: Coroutine[Deferred[Any], Any, T]) -> T:
    """What the work comes to, or OutboundError after so many seconds, when it is cancelled."""

    def end(result: T | Failure, _seconds: float) -> T:
        if not isinstance(result, Failure):
            return result
        result.trap(CancelledError)
        status = result.value.status if isinstance(result.value, CutOff) else None
        raise OutboundError(f"it did not answer within {seconds:g} seconds", status=status)

    return await Deferred.fromCoroutine(work).addTimeout(seconds, clock, end)
