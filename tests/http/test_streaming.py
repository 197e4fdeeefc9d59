"""Streamed responses: complete files, ranges, and 304."""

from collections.abc import AsyncIterator, Iterator
from typing import cast

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from federation.protocol.errors import NotFound
from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.conditional_requests import (
    ByteRange,
    RangeNotSatisfiable,
    matches_etag,
    parse_range,
)
from homeserver.http.responses import FileBody, MemorySource, Response, StreamedBody
from homeserver.http.streaming import PIECE_BYTES, STALL_SECONDS
from storage.engine.interface import DatabaseUnavailable
from tests.helpers.http import Client, Connection, client_for

DATA = bytes(range(256)) * 2048
PIECES = len(DATA) // PIECE_BYTES
HEADERS = {"Content-Type": "video/mp4", "Cache-Control": "private"}


class FileSource:
    """A source of the only file, which counts its reads and closes."""

    def __init__(self) -> None:
        self.data = DATA
        self.reads = 0
        self.closed = 0
        self.gate: Deferred[None] | None = None
        self.error: Exception | None = None

    async def read(self, offset: int, size: int) -> bytes:
        self.reads += 1
        if self.gate is not None:
            await self.gate
        if self.error is not None:
            raise self.error
        return self.data[offset : offset + size]

    def close(self) -> None:
        self.closed += 1


@endpoint("GET", "/file", auth=Auth.NONE)
async def get_file(source: FileSource) -> Response:
    return Response(headers=HEADERS, body=FileBody(source, len(DATA), "v1"))


@endpoint("GET", "/pieces/{number}", auth=Auth.NONE)
async def get_pieces(source: FileSource, *, number: int) -> Response:
    async def make() -> AsyncIterator[bytes]:
        for start in range(number):
            yield await source.read(start * 10, 10)
            yield b""

    return Response(body=StreamedBody(make()))


@endpoint("PUT", "/pieces/{number}", auth=Auth.NONE)
async def put_pieces(source: FileSource, *, number: int) -> Response:
    return await get_pieces(source, number=number)


@endpoint("GET", "/short", auth=Auth.NONE)
async def get_short() -> Response:
    return Response(headers=HEADERS, body=FileBody(MemorySource(b"0123456789"), 10, "v2"))


@pytest.fixture
def source() -> Iterator[FileSource]:
    source = FileSource()
    yield source
    assert source.closed in (0, 1)


@pytest.fixture
def client(source: FileSource) -> Client:
    return client_for([get_file, get_pieces, put_pieces, get_short], {FileSource: source})


def _request(
    client: Client, path: str = "/file", headers: str = "", method: str = "GET"
) -> Connection:
    connection = client.connect()
    connection.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    return connection


def _fill(connection: Connection) -> None:
    """Signal that the send buffer is full."""
    assert connection.transport.producer is not None
    connection.transport.producer.pauseProducing()


def _empty(connection: Connection) -> None:
    """Signal that the client has read everything."""
    assert connection.transport.producer is not None
    connection.transport.producer.resumeProducing()


# Complete files.


def test_a_file_is_sent_completely(client: Client, source: FileSource) -> None:
    response = client.request("GET", "/file")
    assert (response.status, response.body) == (200, DATA)
    assert response.headers["content-length"] == str(len(DATA))
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["etag"] == '"v1"'
    assert (source.reads, source.closed) == (PIECES, 1)
    assert client.access_log.records[-1].sent == len(DATA)


def test_the_head_is_sent_with_the_first_piece(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = client.connect()
    writes: list[bytes] = []
    monkeypatch.setattr(connection.transport, "write", writes.append)
    connection.send(b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [write[-10:] for write in writes] == [b"0123456789"]


def test_head_reads_nothing(client: Client, source: FileSource) -> None:
    response = client.request("HEAD", "/file")
    assert (response.status, response.body, response.headers["content-length"]) == (
        200,
        b"",
        str(len(DATA)),
    )
    assert (source.reads, source.closed) == (0, 1)


def test_a_connection_is_kept_for_further_requests(client: Client) -> None:
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
    assert [response.status for response in answers] == [200, 200, 404, 200]
    assert (answers[1].body, answers[3].body) == (DATA, b"0123456789")
    assert not connection.transport.disconnecting
    connection.close()


def test_a_connection_is_closed_on_request(client: Client) -> None:
    connection = _request(client, headers="Connection: close\r\n")
    (response,) = connection.answers()
    assert (response.headers["connection"], response.body) == ("close", DATA)
    assert connection.transport.disconnecting


# Flow control.


def _request_and_fill(client: Client, source: FileSource) -> Connection:
    """Request a file; the client reads one piece, and then no more."""
    source.gate = Deferred()
    connection = _request(client)
    _fill(connection)
    gate, source.gate = source.gate, None
    gate.callback(None)
    return connection


def test_reading_pauses_while_the_client_reads_nothing(client: Client, source: FileSource) -> None:
    connection = _request_and_fill(client, source)
    assert source.reads == 1
    assert len(connection.received()) < 2 * PIECE_BYTES
    _empty(connection)
    assert connection.answers()[0].body == DATA
    assert source.closed == 1
    connection.close()


def test_a_full_connection_gets_nothing_until_it_drains(client: Client, source: FileSource) -> None:
    connection = client.connect()
    _fill(connection)
    connection.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (source.reads, connection.received()) == (0, b"")
    _empty(connection)
    assert connection.answers()[0].body == DATA
    connection.close()


def test_a_stalled_client_is_disconnected(client: Client, source: FileSource) -> None:
    connection = client.connect()
    _fill(connection)
    connection.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
    client.clock.advance(STALL_SECONDS - 1)
    assert source.closed == 0
    client.clock.advance(1)
    assert source.closed == 1
    assert connection.transport.disconnected
    connection.close()
    assert not client.clock.getDelayedCalls()


def test_reading_stops_when_the_client_disconnects(client: Client, source: FileSource) -> None:
    source.gate = Deferred()
    connection = _request(client)
    assert source.closed == 0
    connection.close()
    assert (source.reads, source.closed) == (1, 1)
    assert client.access_log.records[-1].status == 499


def test_reading_does_not_start_after_a_disconnect(client: Client, source: FileSource) -> None:
    connection = client.connect()
    _fill(connection)
    connection.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
    connection.close()
    assert (source.reads, source.closed) == (0, 1)
    assert client.access_log.records[-1].sent == 0
    assert not client.clock.getDelayedCalls()


def test_bytes_sent_before_a_disconnect_are_logged(client: Client, source: FileSource) -> None:
    connection = _request_and_fill(client, source)
    connection.close()
    record = client.access_log.records[-1]
    assert (record.status, record.sent) == (499, PIECE_BYTES)


@pytest.mark.parametrize("what", ["short", "error"])
def test_a_truncated_response_aborts_the_connection(
    client: Client, source: FileSource, what: str
) -> None:
    if what == "short":
        source.data = DATA[: PIECE_BYTES + 5]
    else:
        source.error = OSError("the disk is gone")
    connection = _request(client)
    assert connection.transport.disconnected
    assert source.closed == 1
    connection.close()


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_malformed_input_during_a_response_aborts_and_counts_once(
    client: Client, method: str
) -> None:
    """Both if the handler is cancelled, and if it runs to its end."""
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


# Ranges.


@pytest.mark.parametrize(
    ("range_header", "part"),
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
def test_a_requested_range_is_sent(
    client: Client, range_header: str, part: tuple[int, int]
) -> None:
    response = client.request("GET", "/short", headers={"Range": range_header})
    assert (response.status, response.body) == (206, b"0123456789"[slice(*part)])
    assert response.headers["content-range"] == f"bytes {part[0]}-{part[1] - 1}/10"
    assert response.headers["content-length"] == str(part[1] - part[0])


@pytest.mark.parametrize(
    "range_header",
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
def test_an_invalid_range_gets_the_complete_file(client: Client, range_header: str) -> None:
    response = client.request("GET", "/short", headers={"Range": range_header})
    assert (response.status, response.body) == (200, b"0123456789")
    assert "content-range" not in response.headers


@pytest.mark.parametrize("range_header", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_an_unsatisfiable_range_is_refused(client: Client, range_header: str) -> None:
    response = client.request("GET", "/short", headers={"Range": range_header})
    assert (response.status, response.body, response.headers["content-range"]) == (
        416,
        b"",
        "bytes */10",
    )


def test_a_range_of_a_changed_file_gets_the_complete_file(client: Client) -> None:
    for if_range, status in (
        ('"v2"', 206),
        ('"v1"', 200),
        ('W/"v2"', 200),
        ("Tue, 14 Nov 2023 22:13:20 GMT", 200),
    ):
        response = client.request(
            "GET", "/short", headers={"Range": "bytes=1-2", "If-Range": if_range}
        )
        assert response.status == status


def test_a_long_range_is_sent_in_pieces(client: Client, source: FileSource) -> None:
    response = client.request("GET", "/file", headers={"Range": "bytes=3-"})
    assert (response.body, source.reads) == (DATA[3:], PIECES)


def test_head_ignores_ranges(client: Client) -> None:
    response = client.request("HEAD", "/short", headers={"Range": "bytes=1-2"})
    assert (response.status, response.headers["content-length"]) == (200, "10")


# Conditional requests.


@pytest.mark.parametrize("if_none_match", ['"v1"', 'W/"v1"', '"x", "v1"', "*"])
def test_a_current_copy_gets_304(client: Client, source: FileSource, if_none_match: str) -> None:
    response = client.request(
        "GET", "/file", headers={"If-None-Match": if_none_match, "Range": "bytes=1-2"}
    )
    assert (response.status, response.body, response.headers["etag"]) == (304, b"", '"v1"')
    assert "content-length" not in response.headers
    assert (source.reads, source.closed) == (0, 1)


def test_an_outdated_copy_gets_the_file(client: Client) -> None:
    assert client.request("GET", "/file", headers={"If-None-Match": '"v0", "v"'}).status == 200


def test_an_empty_file_has_no_ranges() -> None:
    assert parse_range("bytes=0-", None, '"x"', 1) == ByteRange(0, 1)
    for range_header in ("bytes=0-", "bytes=-1"):
        with pytest.raises(RangeNotSatisfiable):
            parse_range(range_header, None, '"x"', 0)
    assert not matches_etag([], '"x"')


# Bodies that are made while they are sent.


@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_a_generated_body_is_sent_completely(
    client: Client, source: FileSource, number: int
) -> None:
    connection = client.connect()
    request = (
        f"GET /pieces/{number} HTTP/1.1\r\nHost: x\r\n\r\nGET /short HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    connection.send(request.encode())
    first, second = connection.answers()
    assert (first.status, first.body) == (200, DATA[: number * 10])
    assert first.headers["content-type"] == "application/json"
    assert source.reads == number
    assert second.body == b"0123456789", "the connection is kept"
    assert [record.sent for record in client.access_log.records] == [number * 10, 10]


def test_http_1_0_gets_a_generated_body_until_the_connection_closes(client: Client) -> None:
    connection = client.connect()
    connection.send(b"GET /pieces/5 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    (response,) = connection.answers()
    assert (response.body, response.headers["connection"]) == (DATA[:50], "close")
    assert "transfer-encoding" not in response.headers
    assert connection.transport.disconnecting


def test_head_of_a_generated_body_has_no_body(client: Client) -> None:
    connection = _request(client, "/pieces/5", method="HEAD")
    (response,) = connection.answers(heads=1)
    assert (response.status, response.body) == (200, b"")


def test_generation_pauses_while_the_client_reads_nothing(
    client: Client, source: FileSource
) -> None:
    source.gate = Deferred()
    connection = _request(client, "/pieces/9")
    gate, source.gate = source.gate, None
    _fill_soon = connection.transport.write

    def fill(data: bytes) -> None:
        _fill_soon(data)
        connection.transport.producer.pauseProducing()  # type: ignore[union-attr]

    connection.transport.write = fill  # type: ignore[method-assign]
    gate.callback(None)
    made = source.reads
    assert made < 9
    connection.transport.write = _fill_soon  # type: ignore[method-assign]
    _empty(connection)
    (response,) = connection.answers()
    assert (response.body, source.reads) == (DATA[:90], 9)


def test_a_failure_before_the_first_piece_becomes_the_response(
    client: Client, source: FileSource
) -> None:
    source.error = NotFound("there is nothing")
    response = client.request("GET", "/pieces/5")
    assert (response.status, response.errcode) == (404, "M_NOT_FOUND")


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
def test_a_failure_after_the_first_piece_ends_the_connection(
    client: Client, source: FileSource, logged: list[LogEvent], error: Exception, level: str
) -> None:
    """Only a bug is logged with a traceback."""
    source.gate = Deferred()
    connection = _request(client, "/pieces/9")
    gate, source.gate = source.gate, None
    written = connection.transport.write

    def fail(data: bytes) -> None:
        written(data)
        source.error = error

    connection.transport.write = fail  # type: ignore[method-assign]
    gate.callback(None)
    assert b"HTTP/1.1 200" in connection.received()
    assert not connection.received().endswith(b"0\r\n\r\n"), (
        "the client must not take it for complete"
    )
    failures = [
        event for event in logged if str(error) in formatEvent(event) or "log_failure" in event
    ]
    assert [(event["log_level"].name, "log_failure" in event) for event in failures] == [
        (level, level == "critical")
    ]
    assert connection.transport.disconnected or connection.transport.disconnecting
