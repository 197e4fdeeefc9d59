"""Long bodies in memory, of requests that have not been let in yet: how many bytes there may be.

Who sends a body is known only when all of it is there, since its signature is over the whole. So
whoever can reach a listener can have bytes kept, and there has to be an end to that: for one
address, for all, and in time. What has been let in is bounded by rate limits and turns.
"""

from typing import Final

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import LimitExceeded, TooSlow
from homeserver.http.rate_limits import address_key

FREE_BYTES: Final = 1 << 16
"""A body is not counted up to here: a connection costs about as much."""
MOST_OF_ONE: Final = 48 << 20
"""Bytes from one address: three of the longest transactions."""
MOST: Final = 128 << 20
MOST_SECONDS: Final = 300.0
"""For so long a body may be on its way."""
RETRY_AFTER_MS: Final = 5_000


class HeldBodies:
    """Counts them, for all listeners together."""

    def __init__(
        self, clock: IReactorTime, *, most_of_one: int = MOST_OF_ONE, most: int = MOST
    ) -> None:
        self.clock = clock
        self._most_of_one = most_of_one
        self._most = most
        self._of_address: dict[str, int] = {}
        self._all = 0

    @property
    def size(self) -> int:
        """How many bytes are counted now."""
        return self._all

    def begin(self, address: str) -> "HeldBody":
        """Somebody's body has become long. `address`: of whom it comes from."""
        return HeldBody(self, address_key(address))

    def add(self, key: str, size: int) -> None:
        """Raises LimitExceeded; then nothing is counted."""
        of_one = self._of_address.get(key, 0) + size
        if of_one > self._most_of_one:
            raise LimitExceeded(
                "Too much is on its way from your address already", retry_after_ms=RETRY_AFTER_MS
            )
        if self._all + size > self._most:
            raise LimitExceeded(
                "Too much is on its way to this server already", retry_after_ms=RETRY_AFTER_MS
            )
        self._of_address[key] = of_one
        self._all += size

    def remove(self, key: str, size: int) -> None:
        """So much has been let in, or is no more."""
        left = self._of_address.get(key, 0) - size
        self._all -= size
        if left > 0:
            self._of_address[key] = left
        else:
            self._of_address.pop(key, None)


class HeldBody:
    """One of them."""

    __slots__ = ("_all", "_begun_at", "_key", "_size")

    def __init__(self, bodies: HeldBodies, key: str) -> None:
        self._all = bodies
        self._key = key
        self._size = 0
        self._begun_at = bodies.clock.seconds()

    def add(self, size: int) -> None:
        """It has grown. Raises LimitExceeded, TooSlow."""
        if self._all.clock.seconds() - self._begun_at > MOST_SECONDS:
            raise TooSlow
        self._all.add(self._key, size)
        self._size += size

    def release(self) -> None:
        """It is not counted any longer."""
        if self._size:
            self._all.remove(self._key, self._size)
            self._size = 0
