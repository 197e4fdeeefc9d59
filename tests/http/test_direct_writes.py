"""Responses are written to the socket at once and in order, again after a slow client has caught
up."""

from typing import Any, cast

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address

from homeserver.http.channel import READ_SIZE, MatrixChannel
from homeserver.http.site import Site
from tests.helpers.http import Client
from tests.helpers.server import TestServer

GET = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\n\r\n"


class _Writers:
    """The part of a reactor that a transport needs: it knows which transports wait to write."""

    def __init__(self) -> None:
        self.waiting: set[object] = set()

    def addReader(self, _: object) -> None:
        """Ignore readers."""

    def removeReader(self, _: object) -> None:
        """Ignore readers."""

    def addWriter(self, writer: object) -> None:
        self.waiting.add(writer)

    def removeWriter(self, writer: object) -> None:
        self.waiting.discard(writer)


class _Socket(FileDescriptor):
    """A connection whose send buffer has space for `room` bytes."""

    def __init__(self, site: Site, room: int) -> None:
        self.reactor_ = _Writers()
        super().__init__(cast(Any, self.reactor_))
        self.room = room
        self.taken = b""
        self.connected = 1
        self.channel: MatrixChannel = site.buildProtocol(None)
        self.channel.makeConnection(cast(Any, self))

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 1)

    def getHandle(self) -> "_Socket":
        return self

    def send(self, data: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        size = min(self.room, len(data))
        self.room -= size
        self.taken += data[:size]
        return size

    writeSomeData = send

    def make_room(self, size: int) -> None:
        """Free space in the send buffer, as if the client had read, and let the reactor write."""
        self.room += size
        while self.reactor_.waiting and self.room:
            self.doWrite()

    def waits(self) -> bool:
        return bool(self.reactor_.waiting)


def test_responses_are_written_at_once_and_in_order_for_fast_and_slow_clients(
    client: Client,
) -> None:
    fast = _Socket(client.site, 1 << 20)
    fast.channel.dataReceived(GET)
    answer = fast.taken
    assert answer.startswith(b"HTTP/1.1 ")
    assert not fast.waits()

    slow = _Socket(client.site, len(answer) - 5)
    for _ in range(3):
        slow.channel.dataReceived(GET)
    assert slow.taken == answer[:-5]
    assert slow.waits()
    assert slow.channel.is_full
    slow.make_room(len(answer))
    assert slow.taken == (answer * 3)[: 2 * len(answer) - 5]
    slow.make_room(1 << 20)
    assert slow.taken == answer * 3
    assert not slow.waits()

    slow.channel.dataReceived(GET)
    assert slow.taken == answer * 4, "when the queue is empty, a response is written at once again"
    assert not slow.waits()
    for socket in (fast, slow):
        socket.connectionLost(None)
        assert socket.producer is None


class _Reading(_Socket):
    """A connection that has received pieces of data."""

    def __init__(self, site: Site, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.reads = 0
        super().__init__(site, 1 << 20)

    def doRead(self) -> None:
        self.reads += 1
        if self.pieces:
            self.channel.dataReceived(self.pieces.pop(0))


def test_a_long_body_gets_one_further_read_in_the_same_turn(
    server: TestServer,
) -> None:
    body = b"{%b}" % (b" " * 400_000)
    head = (
        b"PUT /_matrix/client/v3/sendToDevice/m.test/1 HTTP/1.1\r\nHost: x\r\n"
        b"Authorization: Bearer x\r\n"
    )
    request = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
    pieces = [request[at : at + READ_SIZE] for at in range(0, len(request), READ_SIZE)]
    connection = _Reading(server.client.site, pieces)
    connection.doRead()
    assert connection.reads == 2, "one read by the reactor, and one for the rest"
    turns = 0
    while pieces:
        assert not connection.taken
        connection.doRead()
        turns += 1
    assert connection.reads == 2 + turns, "one read each turn: a body may be long, and others wait"
    assert connection.taken.startswith(b"HTTP/1.1 401 ")

    short = _Reading(server.client.site, [GET])
    short.doRead()
    assert short.reads == 1
    lost = _Reading(server.client.site, [request[:READ_SIZE]])
    lost.doRead()
    assert lost.reads == 2
    assert not lost.taken
