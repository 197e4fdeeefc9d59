"""Caches the responses to the latest transactions of each server, for repeated transactions.

A server repeats only the transaction that it sent last. The sending server influences the length of
a response, and anybody can run many servers. So the total size of all responses is limited. The
responses to the servers that have sent nothing for the longest time are evicted first.
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

    def __init__(self, most_bytes: int = MAX_BYTES) -> None:
        self._servers: LRU[ServerName, dict[str, bytes]] = LRU(max_weight=most_bytes, weigh=_size)
        """By server and transaction id, the oldest first."""

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
