"""Headers that came before are known by their bytes: what is made of a request is what the parser
makes of it, whatever was sent before it on the connection."""

from random import Random
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from homeserver.http.channel import MatrixChannel
from homeserver.http.head import Head
from homeserver.http.same_headers import SameHeaders

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


class Recorder:
    """Keeps what was made of a request, and answers it: each third one when the next piece has
    come, the others at once."""

    def __init__(self, channel: MatrixChannel, seen: list[object], late: list["Recorder"]) -> None:
        self.channel = channel
        self.seen = seen
        self.late = late
        self.head: Head | None = None
        self.length: int | None = None
        self.body = b""

    def begin(self, head: Head, length: int | None) -> None:
        self.head, self.length = head, length

    def take(self, data: bytes) -> None:
        self.body += data

    def run(self) -> None:
        head = self.head
        assert head is not None
        self.seen.append(
            (
                head.method,
                head.uri,
                head.keep_alive,
                head.takes_chunks,
                head.lines,
                head.last,
                self.body,
            )
        )
        assert self.length in (None, len(self.body))
        if len(self.seen) % 3:
            self.answer()
        else:
            self.late.append(self)

    def answer(self) -> None:
        self.channel.send(b"answer %d\n" % len(self.seen))
        self.channel.done()

    def lost(self) -> None:
        """What it has seen it has seen."""


def talk(pieces: list[bytes]) -> tuple[list[object], bytes, bool]:
    """What is made of what a client sends, what it gets, and whether the connection ends."""
    seen: list[object] = []
    late: list[Recorder] = []
    clock, transport = Clock(), StringTransport()
    channel = MatrixChannel(
        clock, lambda each: Recorder(each, seen, late), idle_timeout=60, max_header_bytes=300
    )
    channel.makeConnection(cast(Any, transport))
    for piece in [*pieces, b"", b""]:
        waited = list(late)
        if piece:
            channel.dataReceived(piece)
        for each in waited:
            late.remove(each)
            each.answer()
        clock.advance(0)
    answers, refusal, _ = transport.value().partition(
        b"HTTP/1.1 4"
    )  # of what is no request, another no may be said
    return seen, answers + refusal, channel._refused


def same_as_parsed(pieces: list[bytes]) -> list[object]:
    """What is made of what a client sends, which is what the parser alone makes of it."""
    known = talk(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SameHeaders, "read", lambda *_: None)
        assert known == talk(pieces)
    return known[0]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_known_by_its_bytes_is_what_is_read(seed: int) -> None:
    chance = Random(seed)
    pieces: list[bytes] = []
    for _ in range(chance.randrange(2, 7)):
        line = chance.choice(LINES[:4] if chance.random() < 0.8 else LINES)
        block = chance.choice(BLOCKS[:8] if chance.random() < 0.8 else BLOCKS)
        if chance.random() < 0.2:  # a body that looks like requests, or like what came before
            body = b"".join(chance.choices(pieces or [line + block], k=chance.randrange(1, 3)))
            block = b"%bContent-Length: %d\r\n\r\n%b" % (chance.choice(FIRST), len(body), body)
        elif chance.random() < 0.1:  # a header that does
            block = b"%bX: %b\r\n%b" % (chance.choice(FIRST), chance.choice(LINES[:4])[:-2], block)
        pieces += [line + block] * chance.choice([1, 1, 2, 3])
    if chance.random() < 0.6:  # what comes does not end where a request does
        whole = b"".join(pieces)
        ends = [at + 2 for at in range(len(whole)) if whole.startswith(b"\r\n", at)]
        inside = [whole.find(line, at) for at in ends for line in LINES[:4]]
        places = [range(len(whole) + 1), ends, [at for at in inside if at >= 0] or ends]
        cuts = sorted(
            chance.choice(chance.choice(places))
            for _ in range(chance.randrange(1, 1 + len(pieces)))
        )
        pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b]
    same_as_parsed(pieces)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("block", BLOCKS[:4])
def test_whatever_the_first_line_is_it_is_what_the_parser_reads(line: bytes, block: bytes) -> None:
    usual = LINES[0] + block
    same_as_parsed([usual, usual, line + block, usual])
    same_as_parsed([line + block, usual, line + block])


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The addresses of the requests that the parser reads."""
    urls: list[bytes] = []
    on_url = MatrixChannel.on_url

    def parse(self: MatrixChannel, url: bytes) -> None:
        urls.append(url)
        on_url(self, url)

    monkeypatch.setattr(MatrixChannel, "on_url", parse)
    return urls


def test_what_was_sent_before_is_not_parsed_again(parsed: list[bytes]) -> None:
    request, other = b"POST /b HTTP/1.1\r\n" + BLOCKS[3], b"GET /a?c=1 HTTP/1.1\r\n" + BLOCKS[0]
    longer = b"POST /d HTTP/1.1\r\n" + BLOCKS[5]
    body = longer[-60:]
    pieces = [longer[:-50], longer[-50:-20], longer[-20:]]
    seen, _, _ = talk(
        [request, request.replace(b"/b", b"/c").replace(b"abc", b"def"), *pieces, other, other]
    )
    assert parsed == [b"/b", b"/a?c=1"], (
        "nor where the body is of another length, and comes in pieces"
    )
    assert [(each[0], each[1], each[-1]) for each in seen] == [  # type: ignore[index]
        ("POST", b"/b", b"abc"),
        ("POST", b"/c", b"def"),
        ("POST", b"/d", body),
        ("GET", b"/a?c=1", b""),
        ("GET", b"/a?c=1", b""),
    ]
    assert dict(seen[2][5])[b"content-length"] == b"60"  # type: ignore[index]


def test_headers_are_learnt_from_a_request_whose_body_is_to_come(parsed: list[bytes]) -> None:
    """As long bodies are, which come in several pieces."""
    request = b"PUT /b HTTP/1.1\r\n" + BLOCKS[5]
    seen, _, _ = talk([request[:-50], request[-50:], request[:-40], request[-40:], request])
    assert [each[-1] for each in seen] == [request[-60:]] * 3  # type: ignore[index]
    assert parsed == [b"/b"]


def test_where_each_request_has_other_headers_hardly_any_are_kept() -> None:
    """As on the connection of a proxy, where people take turns. Where one of them remains, theirs
    are kept again."""
    headers = SameHeaders()

    def send(name: bytes) -> bool:
        data = b"GET /a HTTP/1.1\r\nX: %b\r\n\r\n" % name
        if headers.read(data, 300) is not None:
            return True
        headers.learn(data, Head("GET", b"/a", True, True, [(b"x", name)], {b"x": name}))
        return False

    assert [send(b"%d" % (number // 2)) for number in range(100)] == [False, True] * 50
    assert not any(send(b"%d" % number) for number in range(100))
    assert [send(b"one") for _ in range(100)].index(True) in range(2, 65)
    assert send(b"one")


def test_long_headers_are_not_kept() -> None:
    """There may be very many connections, each with headers as long as they may be."""
    headers = SameHeaders()
    for size in (4000, 5000):
        text = b"X: " + b"x" * size
        data = b"GET /a HTTP/1.1\r\n%b\r\n\r\n" % text
        headers.learn(data, Head("GET", b"/a", True, True, [(b"x", text[3:])], {b"x": text[3:]}))
        assert (headers.read(data, 16384) is not None) is (size < 4096)


def test_what_is_learnt_is_not_the_length_of_a_request_that_follows() -> None:
    """The first request of a packet is whole, the second one's body is to come, and said to be as
    long as the second one is so far: the headers of the first are not those of the second."""
    first = b"POST /a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer one\r\n\r\n"
    second = b"POST /b HTTP/1.1\r\nHost: x\r\nAuthorization: two\r\nContent-Length: 73\r\n\r\n"
    assert len(second) < 73
    second += b"b" * 73
    begun = second[:73]  # with a part of the body: as many bytes as it says its body has
    third = b"GET /c HTTP/1.1\r\nHost: x\r\n"
    third += b"X: " + b"c" * (73 - len(third) - 7) + b"\r\n\r\n"
    assert len(third) == 73
    seen = same_as_parsed([first + begun, second[73:], first + third])
    assert [each[1] for each in seen] == [b"/a", b"/b", b"/a", b"/c"]  # type: ignore[index]
    assert seen[2][5][b"authorization"] == b"Bearer one"  # type: ignore[index]


def test_what_looks_like_a_request_is_not_one_in_the_middle_of_headers() -> None:
    """A packet ends within a header; the next one goes on with what could be a request."""
    usual = b"GET /a HTTP/1.1\r\n" + BLOCKS[0]
    seen = same_as_parsed(
        [usual, usual + b"GET /b HTTP/1.1\r\nX: ", b"GET /c HTTP/1.1\r\n" + BLOCKS[0]]
    )
    assert [each[1] for each in seen] == [b"/a", b"/a", b"/b"]  # type: ignore[index]
