"""Receipts of other servers' users that came before the events at which they stand: they are taken in when these come.

A server tells of what its users have read at once, while the event may still be on its way from a third one. As nobody can say
yet how far on it is, such a receipt does not take the place of another one (`storage/receipts.py`). What waits is in memory, and
of each server only so much: a receipt that is forgotten is made good by the user's next one. For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.protocol.ids import ServerName
from storage.events import EventRow
from storage.streams import Change, Streams, Topic

MOST_SERVERS: Final = 200
MOST_OF_SERVER: Final = 200
Receive = Callable[[ServerName, Mapping[str, Any]], Awaitable[None]]

_Reader = tuple[str, str, str | None]
"""Room, user and thread: of each the latest receipt waits."""


class EarlyReceipts:
    """Keeps them, and gives them back."""

    def __init__(self, streams: Streams, receive: Receive) -> None:
        """`receive` takes the content of an `m.receipt` EDU once more."""
        self._receive = receive
        self._servers: OrderedDict[ServerName, OrderedDict[_Reader, tuple[str, Mapping[str, Any]]]] = OrderedDict()
        """By server and reader: the event and the content."""
        self._awaited: dict[str, dict[tuple[ServerName, _Reader], None]] = {}
        """By event: where the receipts at it are."""
        self._log = Logger()
        streams.subscribe(self._hear, Topic.EVENT)

    def keep(self, origin: ServerName, reader: _Reader, event_id: str, content: Mapping[str, Any]) -> None:
        """`content`: of an `m.receipt` EDU, this receipt alone."""
        self._drop(origin, reader)
        waiting = self._servers.setdefault(origin, OrderedDict())
        self._servers.move_to_end(origin)
        waiting[reader] = (event_id, content)
        self._awaited.setdefault(event_id, {})[origin, reader] = None
        if len(waiting) > MOST_OF_SERVER:
            self._drop(origin, next(iter(waiting)))
        if len(self._servers) > MOST_SERVERS:
            longest = next(iter(self._servers))
            for each in list(self._servers[longest]):
                self._drop(longest, each)

    def _drop(self, origin: ServerName, reader: _Reader) -> Mapping[str, Any] | None:
        waiting = self._servers.get(origin)
        if waiting is None or reader not in waiting:
            return None
        event_id, content = waiting.pop(reader)
        if not waiting:
            del self._servers[origin]
        at = self._awaited[event_id]
        del at[origin, reader]
        if not at:
            del self._awaited[event_id]
        return content

    def _hear(self, changes: Sequence[Change]) -> None:
        if not self._awaited:
            return
        for change in changes:
            if isinstance(change.detail, EventRow):
                for origin, reader in list(self._awaited.get(change.detail.event_id, ())):
                    content = self._drop(origin, reader)
                    if content is not None:
                        self._take(origin, content)

    def _take(self, origin: ServerName, content: Mapping[str, Any]) -> None:
        async def receive() -> None:
            await self._receive(origin, content)

        Deferred.fromCoroutine(receive()).addErrback(
            lambda failure: self._log.failure("a receipt that waited for its event was not taken in", failure)
        )
