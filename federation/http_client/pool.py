"""Connections that are kept for the next request to the same place.

Bounds: the requests at the same time, to one place and in all, where the rest wait in turns of
places; the unused connections that are kept, and for how long.

A kept connection may have been closed by the other side a moment ago. A request that changes
nothing when it comes twice is then sent again, once, on a new one; for another only a connection is
taken that was used just now.
"""

from collections.abc import Awaitable, Callable, Hashable

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.http_client.connection import Connection, Received
from federation.http_client.errors import ConnectionGone
from federation.http_client.request import TakeBody
from federation.peers.fair_semaphore import FairSemaphore

AT_ONCE = 8
"""Requests to one place."""
AT_ONCE_IN_ALL = 500
MAX_KEPT = 300
SECONDS_KEPT = 50.0
"""Less than what other servers and the proxies before them usually allow."""
SECONDS_FRESH = 3.0
"""So long ago a connection may have been used that is taken for a request which cannot be
repeated."""


class _Place(msgspec.Struct):
    kept: list[tuple[Connection, float, IDelayedCall]] = msgspec.field(default_factory=list)
    """With when each was last used, the newest last."""
    users: int = 0


class Pool:
    """Keeps connections."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._places: dict[Hashable, _Place] = {}
        self._requests: FairSemaphore[Hashable] = FairSemaphore(AT_ONCE_IN_ALL, AT_ONCE)
        self._kept = 0

    async def exchange(
        self,
        key: Hashable,
        dial: Callable[[], Awaitable[Connection]],
        request: bytes,
        max_bytes: int,
        *,
        repeatable: bool,
        take: TakeBody | None = None,
    ) -> Received:
        """Send a request on a connection to the place that `key` stands for. Raises
        OutboundError."""
        place = self._places.setdefault(key, _Place())
        place.users += 1
        try:
            async with self._requests.hold(key):
                return await self._exchange(key, place, dial, request, max_bytes, repeatable, take)
        finally:
            place.users -= 1
            self._clean(key, place)

    async def _exchange(
        self,
        key: Hashable,
        place: _Place,
        dial: Callable[[], Awaitable[Connection]],
        request: bytes,
        max_bytes: int,
        repeatable: bool,
        take: TakeBody | None,
    ) -> Received:
        connection = self._take(place, repeatable)
        if connection is not None:
            try:
                received = await connection.exchange(request, max_bytes, take)
            except ConnectionGone:
                if not repeatable:
                    raise
            else:
                self._keep(key, place, connection)
                return received
        connection = await dial()
        received = await connection.exchange(request, max_bytes, take)
        self._keep(key, place, connection)
        return received

    def close(self) -> None:
        """Close what is kept."""
        for key, place in list(self._places.items()):
            for connection, _, _ in list(place.kept):
                self._drop(key, place, connection)

    def count_kept(self) -> int:
        """How many connections are kept that nobody uses."""
        return self._kept

    def _take(self, place: _Place, repeatable: bool) -> Connection | None:
        while place.kept:
            connection, used_at, timer = place.kept[-1]
            if not repeatable and self._clock.seconds() - used_at > SECONDS_FRESH:
                return None
            place.kept.pop()
            self._kept -= 1
            timer.cancel()
            connection.when_closed(_do_nothing)
            if connection.is_open:
                return connection
        return None

    def _keep(self, key: Hashable, place: _Place, connection: Connection) -> None:
        if not connection.is_open:
            return
        if self._kept >= MAX_KEPT:
            connection.abort()
            return
        timer = self._clock.callLater(SECONDS_KEPT, self._drop, key, place, connection)
        place.kept.append((connection, self._clock.seconds(), timer))
        self._kept += 1
        connection.when_closed(lambda: self._drop(key, place, connection))

    def _drop(self, key: Hashable, place: _Place, connection: Connection) -> None:
        for entry in place.kept:
            if entry[0] is connection:
                place.kept.remove(entry)
                self._kept -= 1
                if entry[2].active():
                    entry[2].cancel()
                break
        connection.when_closed(_do_nothing)
        connection.abort()
        self._clean(key, place)

    def _clean(self, key: Hashable, place: _Place) -> None:
        if not place.users and not place.kept and self._places.get(key) is place:
            del self._places[key]


def _do_nothing() -> None:
    """A connection that somebody uses tells that one."""
