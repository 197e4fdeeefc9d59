"""Streams a long response body piece by piece. Only one piece and the connection's write buffer are
in memory.

When the write buffer is full, the stream waits until the client has read it. If that takes longer
than `STALL_SECONDS`, the client is disconnected. Otherwise a client that reads nothing could keep a
file of the server open forever.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from homeserver.http.channel import MatrixChannel
from homeserver.http.responses import FileSource

PIECE_BYTES: Final = 1 << 17
STALL_SECONDS: Final = 120
LAST_CHUNK: Final = b"0\r\n\r\n"


class StreamInterrupted(Exception):
    """The response was started and cannot be finished."""


@implementer(IPushProducer)
class ResponseStream:
    """One streamed response. `run` returns when all is handed to the connection."""

    def __init__(self, *, channel: MatrixChannel, clock: IReactorTime) -> None:
        self.sent = 0
        """Bytes of the body sent so far."""
        self._channel = channel
        self._clock = clock
        self._drained: Deferred[None] | None = None
        self._stall_timer: IDelayedCall | None = None
        self._stopped = False

    async def run(
        self, head: bytes, pieces: AsyncIterator[bytes], *, in_chunks: bool = False
    ) -> None:
        """Send the head, then the pieces; each is made when the client has read enough. Raises
        `StreamInterrupted`, and what making a piece raises.

        The head is sent with the first piece: alone it would be a packet for which the next one
        waits. `in_chunks`: use chunked transfer encoding.
        """
        channel = self._channel
        channel.registerProducer(self, True)
        try:
            if channel.is_full:
                self.pauseProducing()
            while True:
                if self._drained is not None:
                    await self._drained
                if self._stopped:
                    raise StreamInterrupted
                piece = await anext(pieces, None)
                if self._stopped:
                    raise StreamInterrupted
                if piece is None:
                    break
                if not piece:
                    continue  # an empty chunk would end the body
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
            self._cancel_stall_timer()
            channel.unregisterProducer()

    def pauseProducing(self) -> None:
        if self._drained is None and not self._stopped:
            self._drained = Deferred()
            self._stall_timer = self._clock.callLater(STALL_SECONDS, self._on_stall)

    def resumeProducing(self) -> None:
        drained, self._drained = self._drained, None
        self._cancel_stall_timer()
        if drained is not None and not drained.called:
            drained.callback(None)

    def stopProducing(self) -> None:
        self._stopped = True
        self.resumeProducing()

    def _on_stall(self) -> None:
        self._stall_timer = None
        self.stopProducing()

    def _cancel_stall_timer(self) -> None:
        timer, self._stall_timer = self._stall_timer, None
        if timer is not None and timer.active():
            timer.cancel()


async def read_pieces(source: FileSource, start: int, end: int) -> AsyncIterator[bytes]:
    """Read a range of a source piece by piece. Raises `StreamInterrupted` if the source is
    too short, and what reading raises."""
    position = start
    while position < end:
        piece = await source.read(position, min(PIECE_BYTES, end - position))
        if not piece:
            raise StreamInterrupted
        position += len(piece)
        yield piece


async def chain_pieces(first: Sequence[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the first pieces, then the rest."""
    for piece in first:
        yield piece
    async for piece in rest:
        yield piece
