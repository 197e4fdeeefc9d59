"""Where requests wait whose servers nobody here knows yet, until these have said their keys.

Anybody may name servers in requests, as many as they like, and let each answer slowly. So the
places are shared among the network addresses that requests come from, and among the registered
domains that they name: each may hold as many as it leaves free, so that there are some left for
others however hard one presses. And servers are asked by turns among the domains.

The two are taken apart on purpose: many who wait for the same server wait for one question, whoever
came first.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from federation.peers.slots import Slots
from federation.protocol.errors import LimitExceeded
from federation.protocol.ids import ServerName, registered_domain_of


class Door:
    """For the reactor thread."""

    def __init__(self, places: int, at_once: int, retry_after_ms: int) -> None:
        """`places`: for requests; each is held in memory. `at_once`: servers that are asked at the
        same time."""
        self._places = places
        self._retry_after_ms = retry_after_ms
        self._taken = 0
        self._of_addresses: Counter[str] = Counter()
        self._of_domains: Counter[str] = Counter()
        self._turns: Slots[str] = Slots(at_once, max(1, at_once // 2))

    @contextmanager
    def place(self, address: str, server: ServerName) -> Iterator[None]:
        """Hold a place for a request from an address that names a server. Raises LimitExceeded
        where there is none for it."""
        domain = registered_domain_of(server)
        free = self._places - self._taken
        if max(self._of_addresses[address], self._of_domains[domain]) >= free:
            raise LimitExceeded(
                "Too many servers make themselves known just now",
                retry_after_ms=self._retry_after_ms,
            )
        self._taken += 1
        self._of_addresses[address] += 1
        self._of_domains[domain] += 1
        try:
            yield
        finally:
            self._taken -= 1
            for counter, key in ((self._of_addresses, address), (self._of_domains, domain)):
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]

    async def acquire(self, server: ServerName) -> None:
        """Wait for the turn of a server to be asked. A `release` follows."""
        await self._turns.acquire(registered_domain_of(server))

    def release(self, server: ServerName) -> None:
        """The server has been asked."""
        self._turns.release(registered_domain_of(server))
