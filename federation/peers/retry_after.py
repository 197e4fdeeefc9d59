"""Which servers have asked to be left alone for a while with requests of one kind (429), and until
when.

Each kind has a memory of its own: who has no time for one may well have for another. It is this
process's, of the latest so many servers; whoever makes up names makes others be forgotten, and
asked too soon once.

spec: client-server-api#rate-limiting
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from federation.peers.requests import asked_wait_ms
from federation.protocol.ids import ServerName

MOST: Final = 1000
"""Servers."""


class Patience:
    """For the reactor thread."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._until: OrderedDict[ServerName, int] = OrderedDict()

    def note(self, server: ServerName, failure: Exception) -> None:
        """So it has answered: if that asks us to wait, we do."""
        wait_ms = asked_wait_ms(failure)
        if wait_ms:
            self._until[server] = self._now_ms() + wait_ms
            self._until.move_to_end(server)
            if len(self._until) > MOST:
                self._until.popitem(last=False)

    def left_ms(self, server: ServerName) -> int:
        """For how long it still asks to be left alone; 0 where it does not."""
        left = self._until.get(server, 0) - self._now_ms()
        if left <= 0:
            self._until.pop(server, None)
        return max(left, 0)
