"""One connection: twisted.web's HTTP channel, made to answer what is malformed or too long with a Matrix error.

After such an answer, what the client still sends is thrown away for a moment, that it may read the answer before the
connection ends; closing at once would make its system throw the answer away.
"""

# mypy: allow-untyped-calls

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import ServerFactory
from twisted.web.http import HTTPChannel, Request

from homeserver.http.addresses import normalise
from homeserver.http.wire import malformed

LINGER_SECONDS: Final = 5
LINGER_BYTES: Final = 1 << 20


class MatrixChannel(HTTPChannel):
    """A connection, and the requests on it, one after the other."""

    peer_address = ""
    _refused = False
    _has_queued = False
    _write_some: Callable[[bytes], int | Exception] | None = None
    _thrown_away = 0

    def __init__(self, factory: ServerFactory, clock: IReactorTime, request_factory: type[Request]) -> None:
        super().__init__()
        self.factory = factory
        self.requestFactory = request_factory
        self._clock = clock

    def callLater(self, period: float, func: Callable[[], Any]) -> IDelayedCall:
        return self._clock.callLater(period, func)

    def connectionMade(self) -> None:
        super().connectionMade()
        assert self.transport is not None
        if not self.isSecure():
            # With TLS the name leads past the encryption, to the connection beneath.
            self._write_some = getattr(self.transport, "writeSomeData", None)
        self.peer_address = normalise(str(getattr(self.transport.getPeer(), "host", ""))) or ""

    def send(self, data: bytes, *, at_once: bool) -> None:
        """Write an answer. `at_once`: nothing was written on the connection by other ways that may still wait.

        Twisted hands data to the system in the next turn of the reactor, which costs a turn and two system calls more than
        to do it here, where most answers fit whole. What does not fit goes the usual way, as does then all that follows.
        """
        transport = self.transport
        assert transport is not None
        if at_once and not self._has_queued and self._write_some is not None:
            sent = self._write_some(data)
            if not isinstance(sent, int):
                sent = 0  # the connection is lost; the usual way finds out and cleans up
            if sent == len(data):
                return
            data = data[sent:]
        self._has_queued = True
        transport.write(data)

    def refuse(self) -> None:
        """Read nothing more: what comes is thrown away for a moment, then the connection ends."""
        self._refused = True
        self.persistent = 0
        self.clearLineBuffer()
        self.setTimeout(LINGER_SECONDS)

    def requestDone(self, request: Request) -> None:
        if self._refused:
            self.requests.remove(request)
        else:
            super().requestDone(request)

    def dataReceived(self, data: bytes) -> None:
        if not self._refused:
            super().dataReceived(data)
            return
        self._thrown_away += len(data)
        if self._thrown_away > LINGER_BYTES:
            self.setTimeout(None)
            self.forceAbortClient()

    def lineReceived(self, line: bytes) -> None:
        if not self._refused:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        if not self._refused:
            super().rawDataReceived(data)

    def allContentReceived(self) -> None:
        if not self._refused:
            super().allContentReceived()

    def lineLengthExceeded(self, _line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self._refused:
            return
        assert self.transport is not None
        self.send(malformed(), at_once=True)
        self.refuse()
