"""Request framing: packet boundaries and earlier requests do not change how a request is parsed."""

from itertools import pairwise
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from homeserver.http.channel import MatrixChannel
from homeserver.http.request_head import RequestHead

BLOCKS = (
    b"Host: x\r\nAuthorization: Bearer one\r\n\r\n",
    b"Host: x\r\nAuthorization: Bearer two\r\n\r\n",
    b"Host: x\r\nCookie: a\r\nCookie: b\r\nConnection: keep-alive\r\n\r\n",
    b"Host: x\r\nContent-Length: 3\r\n\r\nabc",
    b"Host: x\r\nContent-Length: 0\r\n\r\n",
    b"Host: x\r\nContent-Length: 60\r\n\r\n" + 2 * b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n00",
    b"Host: x\r\nContent-Length: 40\r\nX: y\r\n\r\n" + 10 * b"abcd",
    b"Host: x\r\nContent-Length: 2\r\nX: y\r\n\r\nab",
    b"Host: x\r\nContent-Length: 003\r\n\r\nabc",
    b"Host: x\r\nContent-Length: 3 \r\n\r\nabc",
    b"Host: x\r\nContent-Length:3\r\n\r\nabc",
    b"Host: x\r\nContent-Length: +3\r\n\r\nabc",
    b"Host: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    b"Host: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
    b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"Host: x\r\nConnection: close\r\n\r\n",
    b"Host: x\r\nHost: y\r\n\r\n",
    b"Host: x y\r\n\r\n",
    b"Host:\r\n\r\n",
    b"\r\n",
    b"Host: x\nAuthorization: Bearer one\r\n\r\n",
    b"Host: x\r\nX: a\r\n b\r\n\r\n",
)
LINES = (
    b"GET /a HTTP/1.1\r\n",
    b"GET /a?b=%20&c=1 HTTP/1.1\r\n",
    b"PUT /b HTTP/1.1\r\n",
    b"POST /b HTTP/1.1\r\n",
    b"HEAD /a HTTP/1.1\r\n",
    b"GET /a HTTP/1.0\r\n",
    b"GET  /a HTTP/1.1\r\n",
    b"GET /a b HTTP/1.1\r\n",
    b"GET a HTTP/1.1\r\n",
    b"GET /a HTTP/1.1\n",
    b"GET /" + b"a" * 400 + b" HTTP/1.1\r\n",
    b"\r\nGET /a HTTP/1.1\r\n",
    b"GET HTTP/1.1\r\n",
    b"GET /\r\n",
    b"GET / HTTP/1.1 HTTP/1.1\r\n",
    b"GET /a#b HTTP/1.1\r\n",
    b"GET /\x7f HTTP/1.1\r\n",
    b"GET /\xc3\xa4 HTTP/1.1\r\n",
    b'GET /a"<b> HTTP/1.1\r\n',
    b"GET http://x/a HTTP/1.1\r\n",
    b"GET /a\tb HTTP/1.1\r\n",
    b"get /a HTTP/1.1\r\n",
)

FIRST = (b"", b"Host: x\r\n", b"Host: x\r\nAuthorization: Bearer one\r\n")

Request = tuple[str, bytes, bool, bool, list[tuple[bytes, bytes]], dict[bytes, bytes], bytes]
URI = 1
KEEP_ALIVE = 2
BODY = -1


class Recorder:
    """Records each request. Answers at once, or every third one only after the next packet."""

    def __init__(
        self, channel: MatrixChannel, seen: list[Request], late: list["Recorder"] | None
    ) -> None:
        self.channel = channel
        self.seen = seen
        self.late = late
        self.head: RequestHead | None = None
        self.length: int | None = None
        self.body = b""

    def begin(self, head: RequestHead, length: int | None) -> None:
        self.head, self.length = head, length

    def add_body(self, data: bytes) -> None:
        self.body += data

    def run(self) -> None:
        head = self.head
        assert head is not None
        self.seen.append(
            (
                head.method,
                head.uri,
                head.keep_alive,
                head.accepts_chunks,
                head.headers,
                head.by_name,
                self.body,
            )
        )
        assert self.length in (None, len(self.body))
        if self.late is None or len(self.seen) % 3:
            self.answer()
        else:
            self.late.append(self)

    def answer(self) -> None:
        self.channel.send(b"answer\n")
        self.channel.done()

    def on_disconnect(self) -> None:
        """Keep what was recorded."""


def send(packets: list[bytes], *, answer_late: bool = False) -> tuple[list[Request], bool]:
    """Send packets on one connection; return the requests, and whether the server refused."""
    seen: list[Request] = []
    late: list[Recorder] = []
    clock, transport = Clock(), StringTransport()
    channel = MatrixChannel(
        clock=clock,
        make_exchange=lambda each: Recorder(each, seen, late if answer_late else None),
        idle_timeout=60,
        max_header_bytes=300,
    )
    channel.makeConnection(cast(Any, transport))
    for packet in [*packets, b"", b""]:
        waited = list(late)
        if packet:
            channel.dataReceived(packet)
        for each in waited:
            late.remove(each)
            each.answer()
        clock.advance(0)
    return seen, transport.value().count(b"HTTP/1.1 4") > 0


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in pairwise(bounds) if a < b]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_packet_boundaries_and_slow_answers_do_not_change_the_requests(seed: int) -> None:
    chance = Random(seed)
    messages: list[bytes] = []
    for _ in range(chance.randrange(2, 7)):
        line = chance.choice(LINES[:4] if chance.random() < 0.8 else LINES)
        block = chance.choice(BLOCKS[:8] if chance.random() < 0.8 else BLOCKS)
        if chance.random() < 0.2:  # a body that looks like requests
            body = b"".join(chance.choices(messages or [line + block], k=chance.randrange(1, 3)))
            block = b"%bContent-Length: %d\r\n\r\n%b" % (chance.choice(FIRST), len(body), body)
        elif chance.random() < 0.1:  # a header that looks like a request
            block = b"%bX: %b\r\n%b" % (
                chance.choice(FIRST),
                chance.choice(LINES[:4])[:-2],
                block,
            )
        messages += [line + block] * chance.choice([1, 1, 2, 3])
    data = b"".join(messages)
    ends = [at + 2 for at in range(len(data)) if data.startswith(b"\r\n", at)]
    inside = [at for end in ends for line in LINES[:4] if (at := data.find(line, end)) >= 0]
    choices = [range(len(data) + 1), ends, inside or ends]
    places = [chance.choice(chance.choice(choices)) for _ in range(1 + len(messages))]
    expected, refused = send(messages)
    assert send(cut(data, places)) == (expected, refused)
    seen, refused_late = send(cut(data, places), answer_late=True)
    # a refusal ends the connection, also for requests that still wait for their turn
    assert seen == (expected[: len(seen)] if refused_late else expected)
    has_last = any(not each[KEEP_ALIVE] for each in expected)  # what follows may be refused
    assert refused_late == refused or has_last


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("block", BLOCKS)
def test_a_request_is_read_the_same_whatever_came_before(line: bytes, block: bytes) -> None:
    usual = LINES[0] + BLOCKS[0]
    alone, refused = send([line + block])
    assert send([usual]) == ([(seen := send([usual])[0])[0]], False)
    assert send([usual, usual, line + block]) == ([*seen, *seen, *alone], refused)
    assert send([usual + usual + line + block]) == ([*seen, *seen, *alone], refused)


def test_a_body_arrives_in_packets() -> None:
    request = b"PUT /b HTTP/1.1\r\n" + BLOCKS[5]
    seen, _ = send([request[:-50], request[-50:-20], request[-20:], request])
    assert [each[BODY] for each in seen] == [request[-60:]] * 2


def test_the_length_of_a_body_is_that_of_its_own_request() -> None:
    """The first packet holds a request and a part of the next one, whose body is longer."""
    first = b"POST /a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer one\r\n\r\n"
    second = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 73\r\n\r\n" + b"b" * 73
    third = b"GET /c HTTP/1.1\r\nHost: x\r\n\r\n"
    seen, _ = send([first + second[:73], second[73:], first + third])
    assert [(each[URI], each[BODY]) for each in seen] == [
        (b"/a", b""),
        (b"/b", b"b" * 73),
        (b"/a", b""),
        (b"/c", b""),
    ]


def test_a_header_that_looks_like_a_request_is_a_header() -> None:
    """A packet ends within a header, and the next one begins like a request."""
    usual = b"GET /a HTTP/1.1\r\n" + BLOCKS[0]
    packets = [
        usual,
        usual + b"GET /b HTTP/1.1\r\nX: ",
        b"GET /c HTTP/1.1\r\n" + BLOCKS[0],
    ]
    seen, _ = send(packets)
    assert [each[URI] for each in seen] == [b"/a", b"/a", b"/b"]
