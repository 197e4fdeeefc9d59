"""Protects Twisted's HTTP client protocol from untrusted servers, as a wrapper on its connection.

- The head of a response has a size limit.
- If data arrives while no request waits for it, the connection is closed.
- If the certificate is not for the requested name, the connection is closed before anything is
  sent.
"""

from collections.abc import Callable
from typing import Final, cast

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IProtocol,
    IProtocolFactory,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web.client import RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived
from zope.interface import directlyProvides, implementer, providedBy

from federation.http_client.errors import ConnectionGone, OutboundError
from federation.http_client.tls import TlsName

MAX_HEAD_BYTES: Final = 64 << 10
"""Limit of the first line and the headers of a response, and of interim responses before it."""


@implementer(IHandshakeListener)
class GuardedConnection(ProtocolWrapper):
    """The transport of one `HTTP11ClientProtocol`. `ready` fires with the protocol once the server
    is authenticated."""

    def __init__(self, *, factory: "GuardFactory", wrapped: IProtocol, tls: TlsName | None) -> None:
        super().__init__(factory, wrapped)
        self.ready: Deferred[IProtocol] = Deferred(lambda _: self.loseConnection())
        self.is_open = False
        self.used_at: float | None = None
        """Time when the last response ended. None for a new connection."""
        self.closed_by: Failure | None = None
        self._tls = tls
        self._problem: OutboundError | None = None
        self._ended_here = False
        self._is_busy = False
        self._head_bytes: int | None = None
        """Bytes of the head received so far, or None if no head is expected."""
        self._on_close: Callable[[], None] | None = None

    def when_closed(self, call: Callable[[], None]) -> None:
        """Call this when the connection has ended."""
        self._on_close = call

    def begin_request(self) -> None:
        """Expect a response."""
        self._is_busy = True
        self._head_bytes = 0

    def end_head(self) -> None:
        """Record that the head of the response is complete."""
        self._head_bytes = None

    def end_request(self, now: float) -> None:
        """Expect no more data."""
        self._is_busy = False
        self.used_at = now

    def loseConnection(self) -> None:
        """Abort the connection: a server that does not answer the end of TLS must not keep the
        socket open."""
        if self._ended_here or self.closed_by is not None:
            return
        self._ended_here = True
        self.is_open = False
        self.disconnecting = 1
        cast(ITCPTransport, self.transport).abortConnection()

    def explain(self, error: BaseException | None) -> BaseException:
        """Translate an error of Twisted's client on this connection."""
        if self._problem is not None:
            return self._problem
        assert error is not None
        if not isinstance(error, ResponseFailed | RequestTransmissionFailed):
            return error
        cause = error.reasons[0].value
        if isinstance(cause, SSL.Error):
            return _tls_error(cause)
        if isinstance(error, ResponseNeverReceived | RequestTransmissionFailed):
            return ConnectionGone("the connection was closed")
        if isinstance(cause, ConnectionClosed) and not self._ended_here:
            return OutboundError("the connection broke within the answer")
        return OutboundError("its answer is no valid HTTP")

    # ---- Twisted

    def makeConnection(self, transport: ITCPTransport) -> None:
        directlyProvides(self, providedBy(transport))
        Protocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)
        if self._tls is None:
            self._open()

    def handshakeCompleted(self) -> None:
        assert self._tls is not None
        try:
            self._tls.check_identity(cast(TLSMemoryBIOProtocol, self.transport).getHandle())
        except OutboundError as error:
            self.loseConnection()
            self.ready.errback(error)
        else:
            self._open()

    def dataReceived(self, data: bytes) -> None:
        if not self._is_busy:
            self.loseConnection()
            return
        if self._head_bytes is not None:
            # This data may hold the end of the head, unless as much as is allowed came before
            if self._head_bytes > MAX_HEAD_BYTES:
                self._problem = OutboundError("the head of its answer is too long", retryable=False)
                self.loseConnection()
                return
            self._head_bytes += len(data)
        self.wrappedProtocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_open = False
        self.closed_by = reason
        if not self.ready.called:
            error = reason.value
            failed = (
                _tls_error(error)
                if isinstance(error, SSL.Error)
                else ConnectionGone("the connection was closed")
            )
            self.ready.errback(failed)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        if self._on_close is not None:
            self._on_close()

    def _open(self) -> None:
        self.is_open = True
        self.wrappedProtocol.makeConnection(cast(ITCPTransport, self))
        self.ready.callback(self.wrappedProtocol)


class GuardFactory(WrappingFactory[GuardedConnection]):
    """Puts a guard around each protocol of another factory."""

    noisy = False

    def __init__(self, *, wrapped: IProtocolFactory, tls: TlsName | None) -> None:
        """`tls`: the expected certificate."""
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self._tls = tls

    def buildProtocol(self, addr: IAddress | None) -> GuardedConnection:
        return GuardedConnection(
            factory=self, wrapped=self.wrappedFactory.buildProtocol(addr), tls=self._tls
        )


def _tls_error(error: SSL.Error) -> OutboundError:
    parts = error.args[0] if error.args else []
    return OutboundError(
        f"no safe connection: {', '.join(str(part[-1]) for part in parts) or 'TLS failed'}"
    )
