"""Responses that are too long for memory are passed on as they arrive."""

import gzip
import tracemalloc
from collections.abc import Callable, Mapping

import pytest

from federation.http_client.errors import OutboundError
from federation.peers.wire import WireRequest
from federation.protocol.errors import RemoteError
from federation.protocol.ids import ServerName
from tests.helpers.loopback_servers import LoopbackServers, ok

pytestmark = pytest.mark.reactor(120)


class Taker:
    """Takes the bodies of good answers."""

    def __init__(self, most: int = 1 << 40) -> None:
        self.size = 0
        self.largest = 0
        self.heads: list[tuple[int, str]] = []
        self._most = most

    def take(self, status: int, headers: Mapping[str, str]) -> Callable[[bytes], None] | None:
        self.heads.append((status, headers.get("content-type", "")))
        return self.give if status == 200 else None

    def give(self, data: bytes) -> None:
        self.size += len(data)
        self.largest = max(self.largest, len(data))
        if self.size > self._most:
            raise OutboundError("enough", retryable=False)


def place(hosts: LoopbackServers, answer: Callable[[bytes], bytes | None]) -> ServerName:
    hosts.names.addresses["south.example"] = ["127.0.0.1"]
    return ServerName(f"south.example:{hosts.listen(answer, 'south.example')}")


def question(taker: Taker, max_bytes: int = 1 << 30, seconds: float = 30) -> WireRequest:
    return WireRequest("GET", "/_matrix/x", max_bytes=max_bytes, seconds=seconds, take=taker.take)


async def test_a_long_response_is_never_in_memory_at_once(hosts: LoopbackServers) -> None:
    data = bytes(30 << 20)
    taker, wire = Taker(), hosts.wire()
    server = place(hosts, lambda _: ok(data, "Content-Type: a/b"))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        answer = await wire.exchange(server, question(taker))
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (answer.status, answer.body, taker.size) == (200, b"", len(data))
    assert taker.heads == [(200, "a/b")]
    assert after - before < 5 << 20
    retried = await wire.exchange(server, WireRequest("GET", "/_matrix/x"))
    assert retried.body == data


async def test_a_compressed_response_is_decompressed_in_pieces(hosts: LoopbackServers) -> None:
    packed = gzip.compress(bytes(30 << 20))
    taker = Taker()
    server = place(hosts, lambda _: ok(packed, "Content-Encoding: gzip"))
    await hosts.wire().exchange(server, question(taker))
    assert taker.size == 30 << 20
    assert taker.largest <= 256 << 10


async def test_the_body_of_a_short_error_is_kept(hosts: LoopbackServers) -> None:
    taker = Taker()
    body = [b"{}"]
    server = place(hosts, lambda _: ok(body[0]).replace(b"200 OK", b"404 No"))
    answer = await hosts.wire().exchange(server, question(taker))
    assert (answer.status, answer.body, taker.size) == (404, b"{}", 0)
    body[0] = bytes(100_000)
    with pytest.raises(RemoteError, match="longer"):
        await hosts.wire().exchange(server, question(taker))


@pytest.mark.parametrize("headers", [[], ["Content-Encoding: gzip"]])
async def test_limits_apply_to_long_responses(hosts: LoopbackServers, headers: list[str]) -> None:
    body = gzip.compress(bytes(20_000)) if headers else bytes(20_000)
    server = place(hosts, lambda _: ok(body, *headers))
    with pytest.raises(RemoteError, match="longer than 10000"):
        await hosts.wire().exchange(server, question(Taker(), max_bytes=10_000))


async def test_the_consumer_of_a_response_can_stop_it(hosts: LoopbackServers) -> None:
    server = place(hosts, lambda _: ok(bytes(1 << 20)))
    with pytest.raises(RemoteError, match="enough"):
        await hosts.wire().exchange(server, question(Taker(most=1000)))


async def test_an_endless_response_times_out(hosts: LoopbackServers) -> None:
    server = place(
        hosts, lambda _: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    )
    taker = Taker()
    with pytest.raises(RemoteError, match="within"):
        await hosts.wire().exchange(server, question(taker, seconds=2))
    assert taker.size == 1


async def test_a_truncated_response_is_an_error(hosts: LoopbackServers) -> None:
    server = place(
        hosts,
        lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nhello",
    )

    def end(_request: bytes) -> bytes:
        return b""

    ended = place(hosts, end)
    with pytest.raises(RemoteError):
        await hosts.wire().exchange(ended, question(Taker()))
    with pytest.raises(RemoteError):
        await hosts.wire().exchange(server, question(Taker(), seconds=0.5))


async def test_a_client_passes_on_the_response_behind_a_redirect(hosts: LoopbackServers) -> None:
    def answer(request: bytes) -> bytes:
        if request.startswith(b"GET /b"):
            return ok(b"file")
        return b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n"

    hosts.names.addresses["cdn.example"] = ["127.0.0.1"]
    url = f"https://cdn.example:{hosts.listen(answer, 'cdn.example')}/a"
    taker = Taker()
    got = await hosts.client().request("GET", url, redirects=2, only_https=True, take=taker.take)
    assert (got.status, got.body, taker.size) == (200, b"", 4)


@pytest.mark.parametrize(
    "to", ["http://cdn.example/b", "https://127.0.0.1:1/b", "https://[::1]/b", "file:///etc/passwd"]
)
async def test_redirects_to_plain_http_or_internal_addresses_are_refused(
    hosts: LoopbackServers, to: str
) -> None:
    hosts.names.addresses["cdn.example"] = ["10.1.2.3"]
    redirect = f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()
    hosts.names.addresses["south.example"] = ["::1"]
    port = hosts.listen(lambda _: redirect, "south.example", address="::1")
    taker = Taker()
    with pytest.raises(OutboundError):
        await hosts.client(allowed=["::1"] if "::1" not in to else ["::1/128"]).request(
            "GET", f"https://south.example:{port}/a", redirects=2, only_https=True, take=taker.take
        )
    assert taker.size == 0
