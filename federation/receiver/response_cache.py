"""A cache of the responses to the latest transactions of each server: a repeated transaction gets
the same response.

A server repeats the transaction that it sent last, if any. The sender influences how long a
response is, and anybody can run many servers. So all responses together have a bound in bytes, and
the servers that have sent nothing for longest are evicted first.
"""

from typing import Final

from federation.protocol.ids import ServerName
from storage.cache import LRU

MAX_PER_SERVER: Final = 2
MAX_BYTES: Final = 32 << 20
"""A usual response about fifty events has three thousand bytes."""
OVERHEAD_BYTES: Final = 500
"""Memory for a cached response besides its text."""


class TransactionResponseCache:
    """A bounded cache of responses. For the reactor thread."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._servers: LRU[ServerName, dict[str, bytes]] = LRU(max_weight=max_bytes, weigh=_size)
        """By server and transaction ID, the oldest first."""

    def find(self, server: ServerName, txn_id: str) -> bytes | None:
        """Return the response if it is cached."""
        of_server = self._servers.peek(server)
        return None if of_server is None else of_server.get(txn_id)

    def add(self, server: ServerName, txn_id: str, answer: bytes) -> None:
        """Cache a response that is not cached yet."""
        known = self._servers.peek(server) or {}
        self._servers.put(server, dict([*known.items(), (txn_id, answer)][-MAX_PER_SERVER:]))


def _size(_server: ServerName, answers: dict[str, bytes]) -> int:
    return sum(len(txn_id) + len(answer) + OVERHEAD_BYTES for txn_id, answer in answers.items())
