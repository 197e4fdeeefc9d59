"""Answers that are sent as they are read: whole, in part, or not at all."""

from collections.abc import AsyncIterator, Iterator
from typing import cast

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from federation.protocol.errors import NotFound
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.conditions import Part, Unsatisfiable, is_held, part_of
from homeserver.http.responses import File, MemorySource, Pieces, Response
from homeserver.http.streaming import PIECE_BYTES, STALL_SECONDS
from storage.engine.interface import DatabaseUnavailable
from tests.helpers.http import Client, Connection, client_for

DATA = bytes(range(256)) * 2048
PIECES = len(DATA) // PIECE_BYTES
HEADERS = {"Content-Type": "video/mp4", "Cache-Control": "private"}


class Shelf:
    """Holds the one file there is, and knows what is done with it."""

    def __init__(self) -> None:
        self.data = DATA
        self.reads = 0
        self.closed = 0
        self.waits: Deferred[None] | None = None
        self.error: Exception | None = None

    async def read(self, offset: int, size: int) -> bytes:
        self.reads += 1
        if self.waits is not None:
            await self.waits
        if self.error is not None:
            raise self.error
        return self.data[offset : offset + size]

    def close(self) -> None:
        self.closed += 1


@endpoint("GET", "/file", auth=Auth.NONE)
async def get_file(shelf: Shelf) -> Response:
    return Response(headers=HEADERS, body=File(shelf, len(DATA), "v1"))


@endpoint("GET", "/pieces/{number}", auth=Auth.NONE)
async def get_pieces(shelf: Shelf, *, number: int) -> Response:
    async def make() -> AsyncIterator[bytes]:
        for start in range(number):
            yield await shelf.read(start * 10, 10)
            yield b""

    return Response(body=Pieces(make()))


@endpoint("PUT", "/pieces/{number}", auth=Auth.NONE)
async def put_pieces(shelf: Shelf, *, number: int) -> Response:
    return await get_pieces(shelf, number=number)


@endpoint("GET", "/short", auth=Auth.NONE)
async def get_short() -> Response:
    return Response(headers=HEADERS, body=File(MemorySource(b"0123456789"), 10, "v2"))


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()
    yield shelf
    assert shelf.closed in (0, 1)


@pytest.fixture
def client(shelf: Shelf) -> Client:
    return client_for([get_file, get_pieces, put_pieces, get_short], {Shelf: shelf})


def _ask(client: Client, path: str = "/file", further: str = "", method: str = "GET") -> Connection:
    connection = client.connect()
    connection.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{further}\r\n".encode())
    return connection


def _fill(connection: Connection) -> None:
    """The connection takes no more."""
    assert connection.transport.producer is not None
    connection.transport.producer.pauseProducing()


def _empty(connection: Connection) -> None:
    """The client has taken all there was."""
    assert connection.transport.producer is not None
    connection.transport.producer.resumeProducing()


# Whole.


def test_a_file_is_sent_whole(client: Client, shelf: Shelf) -> None:
    answer = client.request("GET", "/file")
    assert (answer.status, answer.body) == (200, DATA)
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"] == '"v1"'
    assert (shelf.reads, shelf.closed) == (PIECES, 1)
    assert client.access_log.records[-1].sent == len(DATA)


def test_the_head_leaves_with_the_first_bytes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = client.connect()
    writes: list[bytes] = []
    monkeypatch.setattr(connection.transport, "write", writes.append)
    connection.send(b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [write[-10:] for write in writes] == [b"0123456789"]


def test_head_reads_nothing(client: Client, shelf: Shelf) -> None:
    answer = client.request("HEAD", "/file")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (
        200,
        b"",
        str(len(DATA)),
    )
    assert (shelf.reads, shelf.closed) == (0, 1)


def test_answers_follow_each_other_on_one_connection(client: Client) -> None:
    connection = client.connect()
    requests = b"".join(
        f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        for method, path in [
            ("GET", "/short"),
            ("GET", "/file"),
            ("GET", "/nowhere"),
            ("GET", "/short"),
        ]
    )
    connection.send(requests)
    answers = connection.answers()
    assert [answer.status for answer in answers] == [200, 200, 404, 200]
    assert (answers[1].body, answers[3].body) == (DATA, b"0123456789")
    assert not connection.transport.disconnecting
    connection.close()


def test_who_wants_no_further_answer_gets_none(client: Client) -> None:
    connection = _ask(client, further="Connection: close\r\n")
    (answer,) = connection.answers()
    assert (answer.headers["connection"], answer.body) == ("close", DATA)
    assert connection.transport.disconnecting


# No faster than the client.


def _ask_and_fill(client: Client, shelf: Shelf) -> Connection:
    """A client that takes one piece, and then no more."""
    shelf.waits = Deferred()
    connection = _ask(client)
    _fill(connection)
    waits, shelf.waits = shelf.waits, None
    waits.callback(None)
    return connection


def test_nothing_is_read_that_the_client_does_not_take(client: Client, shelf: Shelf) -> None:
    connection = _ask_and_fill(client, shelf)
    assert shelf.reads == 1
    assert len(connection.received()) < 2 * PIECE_BYTES
    _empty(connection)
    assert connection.answers()[0].body == DATA
    assert shelf.closed == 1
    connection.close()


def test_a_connection_that_is_full_already_gets_nothing_yet(client: Client, shelf: Shelf) -> None:
    connection = client.connect()
    _fill(connection)
    connection.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (shelf.reads, connection.received()) == (0, b"")
    _empty(connection)
    assert connection.answers()[0].body == DATA
    connection.close()


def test_who_takes_nothing_is_cut_off(client: Client, shelf: Shelf) -> None:
    connection = client.connect()
    _fill(connection)
    connection.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
    client.clock.advance(STALL_SECONDS - 1)
    assert shelf.closed == 0
    client.clock.advance(1)
    assert shelf.closed == 1
    assert connection.transport.disconnected
    connection.close()
    assert not client.clock.getDelayedCalls()


def test_who_goes_away_is_not_read_for(client: Client, shelf: Shelf) -> None:
    shelf.waits = Deferred()
    connection = _ask(client)
    assert shelf.closed == 0
    connection.close()
    assert (shelf.reads, shelf.closed) == (1, 1)
    assert client.access_log.records[-1].status == 499


def test_who_goes_away_while_full_is_not_read_for(client: Client, shelf: Shelf) -> None:
    connection = client.connect()
    _fill(connection)
    connection.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
    connection.close()
    assert (shelf.reads, shelf.closed) == (0, 1)
    assert client.access_log.records[-1].sent == 0
    assert not client.clock.getDelayedCalls()


def test_what_was_sent_until_then_is_in_the_log(client: Client, shelf: Shelf) -> None:
    connection = _ask_and_fill(client, shelf)
    connection.close()
    record = client.access_log.records[-1]
    assert (record.status, record.sent) == (499, PIECE_BYTES)


@pytest.mark.parametrize("what", ["short", "error"])
def test_half_an_answer_does_not_look_whole(client: Client, shelf: Shelf, what: str) -> None:
    if what == "short":
        shelf.data = DATA[: PIECE_BYTES + 5]
    else:
        shelf.error = OSError("the disk is gone")
    connection = _ask(client)
    assert connection.transport.disconnected
    assert shelf.closed == 1
    connection.close()


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_who_sends_nonsense_meanwhile_is_cut_off_and_counted_once(
    client: Client, method: str
) -> None:
    """Whether what makes the answer is given up, or runs to its end."""
    connection = client.connect()
    _fill(connection)
    connection.send(f"{method} /pieces/5 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    connection.send(b"nonsense\r\n\r\n")
    assert connection.transport.disconnected
    _empty(connection)
    assert b"Transfer-Encoding" not in connection.received()
    assert [record.status for record in client.access_log.records] == [499]
    assert client.site.metrics.in_flight == 0
    connection.close()


# In part.


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=2-5", (2, 6)),
        ("bytes=7-", (7, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=5-99", (5, 10)),
        ("BYTES = 2 - 5", (2, 6)),
    ],
)
def test_a_part(client: Client, asked: str, part: tuple[int, int]) -> None:
    answer = client.request("GET", "/short", headers={"Range": asked})
    assert (answer.status, answer.body) == (206, b"0123456789"[slice(*part)])
    assert answer.headers["content-range"] == f"bytes {part[0]}-{part[1] - 1}/10"
    assert answer.headers["content-length"] == str(part[1] - part[0])


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=5-2",
        "bytes=a-b",
        "bytes=-",
        "bytes=",
        "bytes",
        "lines=1-2",
        "bytes=0-1,3-4",
        "bytes=1--2",
        "x" * 999,
    ],
)
def test_what_is_no_range_is_the_whole(client: Client, asked: str) -> None:
    answer = client.request("GET", "/short", headers={"Range": asked})
    assert (answer.status, answer.body) == (200, b"0123456789")
    assert "content-range" not in answer.headers


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_a_part_that_is_not_there(client: Client, asked: str) -> None:
    answer = client.request("GET", "/short", headers={"Range": asked})
    assert (answer.status, answer.body, answer.headers["content-range"]) == (416, b"", "bytes */10")


def test_a_part_of_what_has_changed_is_the_whole(client: Client) -> None:
    for if_range, status in (
        ('"v2"', 206),
        ('"v1"', 200),
        ('W/"v2"', 200),
        ("Tue, 14 Nov 2023 22:13:20 GMT", 200),
    ):
        answer = client.request(
            "GET", "/short", headers={"Range": "bytes=1-2", "If-Range": if_range}
        )
        assert answer.status == status


def test_a_long_part_is_sent_in_pieces(client: Client, shelf: Shelf) -> None:
    answer = client.request("GET", "/file", headers={"Range": "bytes=3-"})
    assert (answer.body, shelf.reads) == (DATA[3:], PIECES)


def test_head_ignores_ranges(client: Client) -> None:
    answer = client.request("HEAD", "/short", headers={"Range": "bytes=1-2"})
    assert (answer.status, answer.headers["content-length"]) == (200, "10")


# Not at all.


@pytest.mark.parametrize("held", ['"v1"', 'W/"v1"', '"x", "v1"', "*"])
def test_what_the_client_has_is_not_sent(client: Client, shelf: Shelf, held: str) -> None:
    answer = client.request("GET", "/file", headers={"If-None-Match": held, "Range": "bytes=1-2"})
    assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", '"v1"')
    assert "content-length" not in answer.headers
    assert (shelf.reads, shelf.closed) == (0, 1)


def test_what_the_client_has_of_another_version_is_sent(client: Client) -> None:
    assert client.request("GET", "/file", headers={"If-None-Match": '"v0", "v"'}).status == 200


def test_conditions_of_an_empty_file() -> None:
    assert part_of("bytes=0-", None, '"x"', 1) == Part(0, 1)
    for asked in ("bytes=0-", "bytes=-1"):
        with pytest.raises(Unsatisfiable):
            part_of(asked, None, '"x"', 0)
    assert not is_held([], '"x"')


# As it is made.


@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_what_is_made_as_it_is_sent_comes_whole(client: Client, shelf: Shelf, number: int) -> None:
    connection = client.connect()
    request = (
        f"GET /pieces/{number} HTTP/1.1\r\nHost: x\r\n\r\nGET /short HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    connection.send(request.encode())
    first, second = connection.answers()
    assert (first.status, first.body) == (200, DATA[: number * 10])
    assert first.headers["content-type"] == "application/json"
    assert shelf.reads == number
    assert second.body == b"0123456789", "the connection goes on"
    assert [record.sent for record in client.access_log.records] == [number * 10, 10]


def test_an_old_client_gets_it_up_to_the_end_of_the_connection(client: Client) -> None:
    connection = client.connect()
    connection.send(b"GET /pieces/5 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    (answer,) = connection.answers()
    assert (answer.body, answer.headers["connection"]) == (DATA[:50], "close")
    assert "transfer-encoding" not in answer.headers
    assert connection.transport.disconnecting


def test_head_of_what_is_made_has_no_body(client: Client) -> None:
    connection = _ask(client, "/pieces/5", method="HEAD")
    (answer,) = connection.answers(heads=1)
    assert (answer.status, answer.body) == (200, b"")


def test_nothing_more_is_made_while_the_client_takes_nothing(client: Client, shelf: Shelf) -> None:
    shelf.waits = Deferred()
    connection = _ask(client, "/pieces/9")
    waits, shelf.waits = shelf.waits, None
    _fill_soon = connection.transport.write

    def fill(data: bytes) -> None:
        _fill_soon(data)
        connection.transport.producer.pauseProducing()  # type: ignore[union-attr]

    connection.transport.write = fill  # type: ignore[method-assign]
    waits.callback(None)
    made = shelf.reads
    assert made < 9
    connection.transport.write = _fill_soon  # type: ignore[method-assign]
    _empty(connection)
    (answer,) = connection.answers()
    assert (answer.body, shelf.reads) == (DATA[:90], 9)


def test_a_failure_before_the_first_piece_is_the_answer(client: Client, shelf: Shelf) -> None:
    shelf.error = NotFound("there is nothing")
    answer = client.request("GET", "/pieces/5")
    assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    seen: list[LogEvent] = []
    observe = cast(ILogObserver, seen.append)
    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (NotFound("it was deleted"), "info"),
        (DatabaseUnavailable("it is away"), "error"),
        (ValueError("a bug"), "critical"),
    ],
)
def test_a_failure_in_the_midst_ends_the_connection(
    client: Client, shelf: Shelf, logged: list[LogEvent], error: Exception, level: str
) -> None:
    """Only a bug is logged with a traceback."""
    shelf.waits = Deferred()
    connection = _ask(client, "/pieces/9")
    waits, shelf.waits = shelf.waits, None
    written = connection.transport.write

    def fail(data: bytes) -> None:
        written(data)
        shelf.error = error

    connection.transport.write = fail  # type: ignore[method-assign]
    waits.callback(None)
    assert b"HTTP/1.1 200" in connection.received()
    assert not connection.received().endswith(b"0\r\n\r\n"), "nobody takes it for whole"
    told = [event for event in logged if str(error) in formatEvent(event) or "log_failure" in event]
    assert [(event["log_level"].name, "log_failure" in event) for event in told] == [
        (level, level == "critical")
    ]
    assert connection.transport.disconnected or connection.transport.disconnecting
