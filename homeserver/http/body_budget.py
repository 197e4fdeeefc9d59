"""Limits the memory for request bodies whose sender is not authenticated yet.

A request is authenticated only when its whole body has arrived, because the signature of a remote
server covers the body. So anybody who can reach a listener can make the server buffer bytes. The
budget limits these bytes, for each address and in total, and the time in which they must arrive.
The first `FREE_BYTES` of a body are not counted; `channel.py` limits the time for them. The budget
does not apply to uploaded files, which are buffered on disk. After authentication, rate limits and
queues apply instead of the budget.
"""

from typing import Final

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import LimitExceeded, TooSlow
from homeserver.http.rate_limits import address_key

FREE_BYTES: Final = 1 << 16
"""A body up to this size is not counted; a connection costs about as much."""
MAX_BYTES_PER_ADDRESS: Final = 48 << 20
"""The limit for one address, in bytes: three of the longest transactions."""
MAX_BYTES: Final = 128 << 20
MAX_SECONDS: Final = 300.0
"""Longest time for the head and the first `FREE_BYTES` of a body together, and longest time for the
rest of the body."""
RETRY_AFTER_MS: Final = 5_000


class BodyBudget:
    """Counts buffered body bytes, for all listeners together."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        max_per_address: int = MAX_BYTES_PER_ADDRESS,
        max_total: int = MAX_BYTES,
    ) -> None:
        self.clock = clock
        self._max_per_address = max_per_address
        self._max_total = max_total
        self._by_address: dict[str, int] = {}
        self._total = 0

    @property
    def size(self) -> int:
        """The number of bytes that are counted now."""
        return self._total

    def reserve(self, address: str) -> "BodyReservation":
        """Start to count a long body from `address`."""
        return BodyReservation(bodies=self, key=address_key(address))

    def add(self, key: str, size: int) -> None:
        """Count more bytes. Raises LimitExceeded; then nothing is counted."""
        of_address = self._by_address.get(key, 0) + size
        if of_address > self._max_per_address:
            raise LimitExceeded(
                "Your address is sending too much data at once", retry_after_ms=RETRY_AFTER_MS
            )
        if self._total + size > self._max_total:
            raise LimitExceeded(
                "The server is receiving too much data at once", retry_after_ms=RETRY_AFTER_MS
            )
        self._by_address[key] = of_address
        self._total += size

    def remove(self, key: str, size: int) -> None:
        """Stop counting bytes: the request was admitted, or has ended."""
        left = self._by_address.get(key, 0) - size
        self._total -= size
        if left > 0:
            self._by_address[key] = left
        else:
            self._by_address.pop(key, None)


class BodyReservation:
    """The counted bytes of one request body."""

    __slots__ = ("_key", "_size", "_started_at", "_total")

    def __init__(self, *, bodies: BodyBudget, key: str) -> None:
        self._total = bodies
        self._key = key
        self._size = 0
        self._started_at = bodies.clock.seconds()

    def add(self, size: int) -> None:
        """Count more bytes of the body. Raises LimitExceeded, TooSlow."""
        if self._total.clock.seconds() - self._started_at > MAX_SECONDS:
            raise TooSlow
        self._total.add(self._key, size)
        self._size += size

    def release(self) -> None:
        """Stop counting this body."""
        if self._size:
            self._total.remove(self._key, self._size)
            self._size = 0
