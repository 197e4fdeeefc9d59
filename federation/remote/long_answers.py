"""Answers that may be long: few of them are read at once, and nobody is kept waiting by those who give short ones slowly, or none.

Anybody may be the server that is asked, and whoever has one machine may be many of them. So an answer is first asked for as a short
one, which needs no place. Where it is longer, it is asked for again once there is a place: by turns among registered domains,
of which each has one place.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import AnswerTooLong, RemoteError
from federation.protocol.ids import ServerName, registered_domain_of
from federation.slots import Slots

ANSWER_SECONDS: Final = 300.0
"""How long a server may take to put a large room's state together, and to send it."""

T = TypeVar("T")
Ask = Callable[[int], Awaitable[T]]
"""Asks for the answer, which may have so many bytes. Raises AnswerTooLong, RemoteError."""
TimeLeft = Callable[[], float]
"""How many seconds there are still, now."""


def as_long_as_it_takes() -> float:
    """No more than any single request may take."""
    return ANSWER_SECONDS


class LongAnswers:
    """The places for answers of one kind. For the reactor thread."""

    def __init__(self, clock: IReactorTime, *, at_once: int, short_bytes: int, most_bytes: int) -> None:
        """`at_once`: answers of more than `short_bytes`."""
        self._clock = clock
        self._places: Slots[str] = Slots(at_once, 1)
        self._short_bytes = short_bytes
        self._most_bytes = most_bytes

    @asynccontextmanager
    async def read(self, server: ServerName, ask: Ask[T], left: TimeLeft = as_long_as_it_takes) -> AsyncIterator[T]:
        """An answer of the server; while it is used, its place is held. Raises RemoteError, also when no place came in the time that
        is left."""
        try:
            short = await ask(self._short_bytes)
        except AnswerTooLong:
            pass  # there is a place for it
        else:
            yield short
            return
        domain = registered_domain_of(server)
        try:
            await Deferred.fromCoroutine(self._places.acquire(domain)).addTimeout(max(left(), 0), self._clock)
        except TimedOut as error:
            raise RemoteError(server, "others are asked, and there is no time left", retryable=True) from error
        try:
            yield await ask(self._most_bytes)
        finally:
            self._places.release(domain)
