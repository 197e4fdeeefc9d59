"""Sends a long answer piece by piece: never more than one piece and what the connection holds is in memory.

A client that takes nothing for `STALL_SECONDS` is cut off: it would keep a file open for as long as it likes.
"""

from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from homeserver.http.answers import Source
from homeserver.http.channel import MatrixChannel

PIECE_BYTES: Final = 1 << 17
STALL_SECONDS: Final = 120


class Interrupted(Exception):
    """The answer has begun and cannot be finished."""


@implementer(IPushProducer)
class Stream:
    """One answer on its way. `run` returns when all is handed to the connection."""

    def __init__(self, channel: MatrixChannel, clock: IReactorTime, source: Source) -> None:
        self.sent = 0
        self._channel = channel
        self._clock = clock
        self._source = source
        self._room: Deferred[None] | None = None
        self._stalled: IDelayedCall | None = None
        self._stopped = False

    async def run(self, head: bytes, start: int, end: int) -> None:
        """Send the head, then these bytes of the source. Raises `Interrupted`, and what reading raises.

        The head leaves with the first bytes: on its own it would be a packet that the next one waits for.
        """
        channel = self._channel
        channel.registerProducer(self, True)
        try:
            if channel.is_full:
                self.pauseProducing()
            position = start
            while position < end:
                if self._room is not None:
                    await self._room
                if self._stopped:
                    raise Interrupted
                piece = await self._source.read(position, min(PIECE_BYTES, end - position))
                if not piece or self._stopped:
                    raise Interrupted
                position += len(piece)
                self.sent += len(piece)
                channel.send(head + piece)
                head = b""
            if head:
                channel.send(head)
        finally:
            self._forget_stall()
            channel.unregisterProducer()

    def pauseProducing(self) -> None:
        if self._room is None and not self._stopped:
            self._room = Deferred()
            self._stalled = self._clock.callLater(STALL_SECONDS, self._give_up)

    def resumeProducing(self) -> None:
        room, self._room = self._room, None
        self._forget_stall()
        if room is not None and not room.called:
            room.callback(None)

    def stopProducing(self) -> None:
        self._stopped = True
        self.resumeProducing()

    def _give_up(self) -> None:
        self._stalled = None
        self.stopProducing()

    def _forget_stall(self) -> None:
        stalled, self._stalled = self._stalled, None
        if stalled is not None and stalled.active():
            stalled.cancel()
