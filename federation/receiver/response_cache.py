"""The answers to the latest transactions of each server, so that one that is repeated is answered
as before.

A server repeats the transaction that it sent last, if any. How long an answer is depends on the
sender, and anybody can be many servers: so all answers together have a bound of bytes, and those go
first whose servers have sent nothing for longest.
"""

from collections import OrderedDict
from typing import Final

from federation.protocol.ids import ServerName

MOST_OF_ONE: Final = 2
MOST_BYTES: Final = 32 << 20
"""An honest answer about fifty events has three thousand."""
OVERHEAD_BYTES: Final = 500
"""What keeping an answer takes besides."""


class RememberedAnswers:
    """For the reactor thread."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._servers: OrderedDict[ServerName, OrderedDict[str, bytes]] = OrderedDict()

    def find(self, server: ServerName, txn_id: str) -> bytes | None:
        """The answer, if it is remembered."""
        of_server = self._servers.get(server)
        return None if of_server is None else of_server.get(txn_id)

    def add(self, server: ServerName, txn_id: str, answer: bytes) -> None:
        """Remember an answer that is not remembered yet, instead of the oldest ones."""
        of_server = self._servers.setdefault(server, OrderedDict())
        self._servers.move_to_end(server)
        self._bytes += _size(txn_id, answer)
        of_server[txn_id] = answer
        while len(of_server) > MOST_OF_ONE:
            self._bytes -= _size(*of_server.popitem(last=False))
        while self._bytes > self._most_bytes:
            _, forgotten = self._servers.popitem(last=False)
            self._bytes -= sum(_size(*each) for each in forgotten.items())


def _size(txn_id: str, answer: bytes) -> int:
    return len(txn_id) + len(answer) + OVERHEAD_BYTES
