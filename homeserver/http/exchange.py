"""What a connection deals with: a request on its way to its answer, one that has to wait, and the
transport beneath."""

from typing import Protocol

import msgspec

from homeserver.http.head import Head


class Exchange(Protocol):
    """A request on its way to its answer, as the channel drives it: `begin`, `take` for each piece,
    `run`."""

    def begin(self, head: Head, length: int | None) -> None:
        """The headers are there. `length`: of the body, where the client said it."""
        ...

    def take(self, data: bytes) -> None:
        """A piece of the body."""
        ...

    def run(self) -> None:
        """The request is whole. The exchange calls `MatrixChannel.done` once it has answered."""
        ...

    def lost(self) -> None:
        """The client has gone."""
        ...


class Waiting(msgspec.Struct):
    """A request that was read before the one ahead of it was answered."""

    head: Head
    length: int | None
    pieces: list[bytes] = msgspec.field(default_factory=list)
    is_whole: bool = False


class Transport(Protocol):
    """What is needed of TCP, TLS and Unix connections."""

    def write(self, data: bytes) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def getPeer(self) -> object: ...
