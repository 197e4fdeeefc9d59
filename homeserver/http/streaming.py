"""Sends a long answer piece by piece: never more than one piece and what the connection holds is in
memory.

A client that takes nothing for `STALL_SECONDS` is cut off: it would keep a file open for as long as
it likes.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from homeserver.http.channel import MatrixChannel
from homeserver.http.responses import Source

PIECE_BYTES: Final = 1 << 17
STALL_SECONDS: Final = 120
LAST_CHUNK: Final = b"0\r\n\r\n"


class Interrupted(Exception):
    """The answer has begun and cannot be finished."""


@implementer(IPushProducer)
class Stream:
    """One answer on its way. `run` returns when all is handed to the connection."""

    def __init__(self, channel: MatrixChannel, clock: IReactorTime) -> None:
        self.sent = 0
        """Bytes of the body."""
        self._channel = channel
        self._clock = clock
        self._room: Deferred[None] | None = None
        self._stalled: IDelayedCall | None = None
        self._stopped = False

    async def run(
        self, head: bytes, pieces: AsyncIterator[bytes], *, in_chunks: bool = False
    ) -> None:
        """Send the head, then the pieces, the next made when the client has taken enough. Raises
        `Interrupted`, and what making them raises.

        The head leaves with the first bytes: on its own it would be a packet that the next one
        waits for. `in_chunks`: each piece says how long it is, and a last one that it was the last.
        """
        channel = self._channel
        channel.registerProducer(self, True)
        try:
            if channel.is_full:
                self.pauseProducing()
            while True:
                if self._room is not None:
                    await self._room
                if self._stopped:
                    raise Interrupted
                piece = await anext(pieces, None)
                if self._stopped:
                    raise Interrupted
                if piece is None:
                    break
                if not piece:
                    continue  # as a chunk it would be the last
                self.sent += len(piece)
                channel.send(
                    b"%b%x\r\n%b\r\n" % (head, len(piece), piece) if in_chunks else head + piece
                )
                head = b""
            if in_chunks:
                head += LAST_CHUNK
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


async def pieces_of(source: Source, start: int, end: int) -> AsyncIterator[bytes]:
    """These bytes of a source. Raises `Interrupted` where it has fewer, and what reading raises."""
    position = start
    while position < end:
        piece = await source.read(position, min(PIECE_BYTES, end - position))
        if not piece:
            raise Interrupted
        position += len(piece)
        yield piece


async def chained(first: Sequence[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Some pieces, and then others."""
    for piece in first:
        yield piece
    async for piece in rest:
        yield piece
