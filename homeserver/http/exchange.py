"""The interfaces between a connection, its requests and its transport."""

from typing import Protocol

import msgspec

from homeserver.http.request_head import RequestHead


class Exchange(Protocol):
    """A request from its headers to its response. The channel calls `begin`, `take` for each piece
    of the body, then `run`."""

    def begin(self, head: RequestHead, length: int | None) -> None:
        """The headers have arrived. `length`: the declared length of the body, if any."""
        ...

    def add_body(self, data: bytes) -> None:
        """A piece of the body has arrived."""
        ...

    def run(self) -> None:
        """The request is complete. The exchange calls `MatrixChannel.done` when it has
        responded."""
        ...

    def on_disconnect(self) -> None:
        """The client has disconnected."""
        ...


class PipelinedRequest(msgspec.Struct):
    """A pipelined request, received before the previous one was answered."""

    head: RequestHead
    length: int | None
    pieces: list[bytes] = msgspec.field(default_factory=list)
    is_complete: bool = False


class Transport(Protocol):
    """The methods that we use of TCP, TLS and Unix connections."""

    def write(self, data: bytes) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def getPeer(self) -> object: ...
