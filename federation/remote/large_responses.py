"""Limits the memory of concurrent large responses, without letting slow servers delay others.

A large response needs a slot, and there are only a few slots of each size. A response is first
requested with a small size limit and without a slot. If the response exceeds the limit, the request
is repeated with a slot for a larger size. If the response exceeds that size too, the request gives
up its slot and waits for one of the next size. So it does not delay smaller responses.

One machine can pose as many servers. So registered domains get the slots in turns, and each domain
may hold one slot of each size.
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
"""Time in which a server has to compute and send the state of a large room."""

T = TypeVar("T")
Ask = Callable[[int], Awaitable[T]]
"""Requests the response, of at most so many bytes. Raises AnswerTooLong, RemoteError."""
TimeLeft = Callable[[], float]
"""Returns the seconds that are left now."""


def get_time_limit() -> float:
    """Return the time limit of a single request."""
    return ANSWER_SECONDS


class LargeResponseSlots:
    """The slots for responses of one kind. Use this class only on the reactor thread."""

    def __init__(
        self, *, clock: IReactorTime, short_bytes: int, slots: Sequence[tuple[int, int]]
    ) -> None:
        """`slots`: slots for responses of more than `short_bytes`, as number and largest size in
        bytes, the smallest first."""
        self._clock = clock
        self._short_bytes = short_bytes
        self._slots: list[tuple[FairSemaphore[str], int]] = [
            (FairSemaphore(permits=at_once, permits_per_key=1), max_bytes)
            for at_once, max_bytes in slots
        ]

    @asynccontextmanager
    async def read(
        self, server: ServerName, ask: Ask[T], time_left: TimeLeft = get_time_limit
    ) -> AsyncIterator[T]:
        """Request a response, and hold its slot in the context.

        Raises RemoteError, also if no slot is free in the time that is left.
        """
        try:
            short = await ask(self._short_bytes)
        except AnswerTooLong:
            pass  # request it again with a slot
        else:
            yield short
            return
        domain = registered_domain_of(server)
        for number, (slots, max_bytes) in enumerate(self._slots, 1):
            try:
                await Deferred.fromCoroutine(slots.acquire(domain)).addTimeout(
                    max(time_left(), 0), self._clock
                )
            except TimedOut as error:
                raise RemoteError(
                    server, "no slot for a large response was free in time", retryable=True
                ) from error
            try:
                try:
                    found = [await ask(max_bytes)]
                except AnswerTooLong:
                    if number == len(self._slots):
                        raise
                    continue
                yield found.pop()  # so that the caller holds the only reference
                return
            finally:
                slots.release(domain)
