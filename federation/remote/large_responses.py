"""Answers that may be long: few of them are read at once, and nobody is kept waiting by those who
give short ones slowly, or none.

Anybody may be the server that is asked, and whoever has one machine may be many of them. So an
answer is first asked for as a short one, which needs no place. Where it is longer, it is asked for
again once there is a place for its size: by turns among registered domains, of which each has one
place of a size. So one that is longer still has the turns of its like, and keeps no other waiting.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime

from federation.peers.fair_semaphore import FairSemaphore
from federation.protocol.errors import AnswerTooLong, RemoteError
from federation.protocol.ids import ServerName, registered_domain_of

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

    def __init__(
        self, clock: IReactorTime, *, short_bytes: int, places: Sequence[tuple[int, int]]
    ) -> None:
        """`places`: for answers of more than `short_bytes`: how many at once, and of how many
        bytes; the smallest first."""
        self._clock = clock
        self._short_bytes = short_bytes
        self._places: list[tuple[FairSemaphore[str], int]] = [
            (FairSemaphore(at_once, 1), most) for at_once, most in places
        ]

    @asynccontextmanager
    async def read(
        self, server: ServerName, ask: Ask[T], left: TimeLeft = as_long_as_it_takes
    ) -> AsyncIterator[T]:
        """An answer of the server; while it is used, its place is held. Raises RemoteError, also
        when no place came in the time that is left."""
        try:
            short = await ask(self._short_bytes)
        except AnswerTooLong:
            pass  # there are places for it
        else:
            yield short
            return
        domain = registered_domain_of(server)
        for number, (slots, most) in enumerate(self._places, 1):
            try:
                await Deferred.fromCoroutine(slots.acquire(domain)).addTimeout(
                    max(left(), 0), self._clock
                )
            except TimedOut as error:
                raise RemoteError(
                    server, "others are asked, and there is no time left", retryable=True
                ) from error
            try:
                try:
                    found = [await ask(most)]
                except AnswerTooLong:
                    if number == len(self._places):
                        raise
                    continue
                yield found.pop()  # whoever uses it can let go of it
                return
            finally:
                slots.release(domain)
