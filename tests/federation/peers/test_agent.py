"""Requests to other servers over real sockets: every way of server discovery, certificates, and
refused responses."""

import gzip
import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from federation.http_client.tls import TlsTrust
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.discovery import Service
from federation.protocol.errors import AnswerTooLong, RemoteError
from federation.protocol.ids import ServerName
from tests.helpers.certificates import START, Authority
from tests.helpers.loopback_servers import CLOCK, LOOPBACK, LoopbackConnection, LoopbackServers, ok

pytestmark = pytest.mark.reactor(60)

GET = WireRequest("GET", "/_matrix/federation/v1/version", seconds=30)


def host_of(request: bytes) -> str:
    lines = [line for line in request.decode().split("\r\n") if line.startswith("Host: ")]
    assert len(lines) == 1
    return lines[0][6:]


async def ask(
    hosts: LoopbackServers,
    name: str,
    request: WireRequest = GET,
    allowed: Sequence[str] = LOOPBACK,
) -> WireResponse:
    return await hosts.wire(allowed).exchange(ServerName(name), request)


async def refused(
    hosts: LoopbackServers,
    name: str,
    request: WireRequest = GET,
    allowed: Sequence[str] = LOOPBACK,
) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await ask(hosts, name, request, allowed)
    return caught.value


def well_known(server: str) -> Callable[[bytes], bytes]:
    return lambda _: ok(f'{{"m.server": "{server}"}}'.encode())


# ---- finding a server


async def test_an_address_with_a_port_is_used_unchanged(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "127.0.0.1")
    answer = await ask(hosts, f"127.0.0.1:{port}")
    assert (answer.status, answer.body) == (200, b"{}")
    assert host_of(hosts.requests[0]) == f"127.0.0.1:{port}"


async def test_a_name_with_an_invalid_port_is_refused(hosts: LoopbackServers) -> None:
    failure = await refused(hosts, "127.0.0.1:65536")
    assert not failure.retryable
    assert "this is no valid server name" in str(failure)


async def test_an_ipv6_address_without_a_port_uses_8448(hosts: LoopbackServers) -> None:
    hosts.moved[8448] = hosts.listen(lambda _: ok(b"{}"), "::1", address="::1")
    assert (await ask(hosts, "[::1]")).status == 200
    assert host_of(hosts.requests[0]) == "[::1]"


async def test_a_name_with_a_port_is_only_looked_up(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "south.example")
    hosts.names.addresses["south.example"] = ["127.0.0.1"]
    assert (await ask(hosts, f"south.example:{port}")).status == 200
    assert host_of(hosts.requests[0]) == f"south.example:{port}"
    assert hosts.names.asked == []


async def test_a_well_known_file_delegates_to_a_host_and_port(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "matrix.south.example")
    hosts.moved[443] = hosts.listen(well_known(f"matrix.south.example:{port}"), "south.example")
    hosts.names.addresses |= {
        "south.example": ["127.0.0.1"],
        "matrix.south.example": ["127.0.0.1"],
    }
    assert (await ask(hosts, "south.example")).status == 200
    assert hosts.requests[0].startswith(b"GET /.well-known/matrix/server HTTP/1.1\r\n")
    assert host_of(hosts.requests[0]) == "south.example"
    assert host_of(hosts.requests[1]) == f"matrix.south.example:{port}"


async def test_a_well_known_file_is_fetched_once_and_connections_are_kept(
    hosts: LoopbackServers,
) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "matrix.south.example")
    hosts.moved[443] = hosts.listen(well_known(f"matrix.south.example:{port}"), "south.example")
    hosts.names.addresses |= {
        "south.example": ["127.0.0.1"],
        "matrix.south.example": ["127.0.0.1"],
    }
    wire = hosts.wire()
    for _ in range(3):
        await wire.exchange(ServerName("south.example"), GET)
    assert [request.split(b" ")[1] for request in hosts.requests] == [
        b"/.well-known/matrix/server",
        *[GET.uri.encode()] * 3,
    ]
    assert len(hosts.connections) == 2


async def test_a_delegated_host_without_a_port_is_resolved_by_srv_and_proves_its_own_name(
    hosts: LoopbackServers,
) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "matrix.south.example")
    hosts.moved[443] = hosts.listen(well_known("matrix.south.example"), "south.example")
    hosts.names.addresses |= {"south.example": ["127.0.0.1"], "machine.example": ["127.0.0.1"]}
    hosts.names.services["_matrix-fed._tcp.matrix.south.example"] = [
        Service(10, 5, "machine.example", port)
    ]
    assert (await ask(hosts, "south.example")).status == 200
    assert host_of(hosts.requests[1]) == "matrix.south.example"


async def test_without_a_well_known_file_both_srv_names_are_looked_up(
    hosts: LoopbackServers,
) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "south.example")
    hosts.names.addresses["machine.example"] = ["127.0.0.1"]
    hosts.names.services["_matrix._tcp.south.example"] = [Service(10, 5, "machine.example", port)]
    assert (await ask(hosts, "south.example")).status == 200
    assert host_of(hosts.requests[0]) == "south.example"
    assert hosts.names.asked == ["_matrix-fed._tcp.south.example", "_matrix._tcp.south.example"]


async def test_the_last_resort_is_port_8448(hosts: LoopbackServers) -> None:
    hosts.moved[8448] = hosts.listen(lambda _: ok(b"{}"), "south.example")
    hosts.moved[443] = hosts.listen(
        lambda _: b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "south.example"
    )
    hosts.names.addresses["south.example"] = ["127.0.0.1"]
    assert (await ask(hosts, "south.example")).status == 200
    assert host_of(hosts.requests[1]) == "south.example"


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"[]",
        b'{"m.server": 5}',
        b'{"m.server": "a b"}',
        b'{"m.server": "south.example:99999"}',
    ],
)
async def test_an_invalid_well_known_file_counts_as_missing(
    hosts: LoopbackServers, body: bytes
) -> None:
    hosts.moved[8448] = hosts.listen(lambda _: ok(b"{}"), "south.example")
    hosts.moved[443] = hosts.listen(lambda _: ok(body), "south.example")
    hosts.names.addresses["south.example"] = ["127.0.0.1"]
    assert (await ask(hosts, "south.example")).status == 200


async def test_a_well_known_file_may_redirect_but_not_to_plain_http(
    hosts: LoopbackServers,
) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "matrix.south.example")
    elsewhere = hosts.listen(well_known(f"matrix.south.example:{port}"), "web.example")
    plain = hosts.listen(well_known("evil.example:1"))
    hosts.moved[8448] = port

    def redirect(request: bytes) -> bytes:
        place = (
            f"https://web.example:{elsewhere}/file"
            if b"Host: south" in request
            else f"http://south.example:{plain}/"
        )
        return f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()

    hosts.moved[443] = hosts.listen(redirect, "south.example", "matrix.south.example")
    for name in ("south.example", "matrix.south.example", "web.example"):
        hosts.names.addresses[name] = ["127.0.0.1"]
    assert (await ask(hosts, "south.example")).status == 200
    assert host_of(hosts.requests[-1]) == f"matrix.south.example:{port}"
    assert (await ask(hosts, "matrix.south.example")).status == 200
    assert host_of(hosts.requests[-1]) == "matrix.south.example"


async def test_endless_redirects_are_followed_five_times(hosts: LoopbackServers) -> None:
    loop = (
        b"HTTP/1.1 301 Moved\r\nLocation: /.well-known/matrix/server\r\nContent-Length: 0\r\n\r\n"
    )
    hosts.moved[443] = hosts.listen(lambda _: loop, "south.example")
    hosts.moved[8448] = hosts.listen(lambda _: ok(b"{}"), "south.example")
    hosts.names.addresses["south.example"] = ["127.0.0.1"]
    assert (await ask(hosts, "south.example")).status == 200
    assert len(hosts.requests) == 1 + 5 + 1


async def test_unreachable_addresses_and_hosts_are_skipped(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "south.example")
    hosts.names.addresses |= {"dead.example": ["::1"], "machine.example": ["::1", "127.0.0.1"]}
    hosts.names.services["_matrix-fed._tcp.south.example"] = [
        Service(1, 5, "dead.example", port),
        Service(2, 5, "machine.example", port),
    ]
    assert (await ask(hosts, "south.example")).status == 200


async def test_an_srv_record_without_a_target_means_no_federation(
    hosts: LoopbackServers,
) -> None:
    hosts.names.services["_matrix-fed._tcp.south.example"] = [Service(0, 0, "", 0)]
    error = await refused(hosts, "south.example")
    assert "does not federate" in str(error)
    assert not error.retryable


async def test_a_name_without_an_address_is_an_error(hosts: LoopbackServers) -> None:
    assert "has no address" in str(await refused(hosts, "nowhere.example"))


# ---- who answers


async def test_a_certificate_for_another_name_is_refused(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "other.example")
    hosts.names.addresses["south.example"] = ["127.0.0.1"]
    assert "not for south.example" in str(await refused(hosts, f"south.example:{port}"))
    assert hosts.requests == []


async def test_a_certificate_for_the_target_of_a_service_is_refused(
    hosts: LoopbackServers,
) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "machine.example")
    hosts.names.addresses["machine.example"] = ["127.0.0.1"]
    hosts.names.services["_matrix-fed._tcp.south.example"] = [
        Service(10, 5, "machine.example", port)
    ]
    assert "not for south.example" in str(await refused(hosts, "south.example"))
    assert hosts.requests == []


async def test_a_certificate_of_an_unknown_authority_is_refused(
    hosts: LoopbackServers, tmp_path: Path
) -> None:
    port = hosts.listen(
        lambda _: ok(b"{}"), certificate=Authority(tmp_path, "unknown").issue("127.0.0.1")
    )
    assert "certificate verify failed" in str(await refused(hosts, f"127.0.0.1:{port}"))
    assert hosts.requests == []


async def test_an_expired_certificate_is_refused(hosts: LoopbackServers) -> None:
    old = hosts.authority.issue("127.0.0.1", end=START.replace(year=2021))
    port = hosts.listen(lambda _: ok(b"{}"), certificate=old)
    assert "certificate verify failed" in str(await refused(hosts, f"127.0.0.1:{port}"))
    assert hosts.requests == []


async def test_a_server_without_tls_is_sent_no_request(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}"))
    await refused(hosts, f"127.0.0.1:{port}", WireRequest("GET", "/_matrix/x", seconds=0.3))
    assert hosts.requests == []


async def test_any_certificate_is_accepted_if_verification_is_off(
    hosts: LoopbackServers, tmp_path: Path
) -> None:
    port = hosts.listen(
        lambda _: ok(b"{}"), certificate=Authority(tmp_path, "unknown").issue("other.example")
    )
    wire = hosts.wire(trust=TlsTrust(verify=False))
    assert (await wire.exchange(ServerName(f"127.0.0.1:{port}"), GET)).status == 200


# ---- where we do not go


async def test_a_denied_address_is_not_contacted(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "127.0.0.1", "south.example")
    hosts.names.addresses["south.example"] = ["127.0.0.1", "10.1.2.3"]
    for name in (
        f"127.0.0.1:{port}",
        f"south.example:{port}",
        f"[::ffff:127.0.0.1]:{port}",
        f"[::1]:{port}",
    ):
        error = await refused(hosts, name, allowed=())
        assert "does not contact" in str(error)
        assert not error.retryable
    assert hosts.connections == []


# ---- answers


async def test_a_compressed_response_is_decompressed(hosts: LoopbackServers) -> None:
    port = hosts.listen(
        lambda _: ok(gzip.compress(b'{"a": 1}'), "Content-Encoding: gzip"), "127.0.0.1"
    )
    answer = await ask(hosts, f"127.0.0.1:{port}")
    assert answer.body == b'{"a": 1}'
    assert b"Accept-Encoding: gzip" in hosts.requests[0]


async def test_a_response_that_decompresses_to_too_much_is_refused(
    hosts: LoopbackServers,
) -> None:
    bomb = gzip.compress(b"0" * (20 << 20))
    port = hosts.listen(lambda _: ok(bomb, "Content-Encoding: gzip"), "127.0.0.1")
    error = await refused(
        hosts,
        f"127.0.0.1:{port}",
        WireRequest("GET", "/_matrix/x", seconds=30, max_bytes=1 << 20),
    )
    assert "longer than" in str(error)


@pytest.mark.parametrize("lines", [["gzip, gzip"], ["gzip", "gzip"], ["identity, gzip"], ["br"]])
async def test_a_response_in_an_unknown_encoding_is_not_decompressed(
    hosts: LoopbackServers, lines: list[str]
) -> None:
    twice = gzip.compress(gzip.compress(b"0" * (20 << 20)))
    port = hosts.listen(
        lambda _: ok(twice, *[f"Content-Encoding: {each}" for each in lines]), "127.0.0.1"
    )
    error = await refused(
        hosts,
        f"127.0.0.1:{port}",
        WireRequest("GET", "/_matrix/x", seconds=30, max_bytes=64 << 20),
    )
    assert "not requested" in str(error)


@pytest.mark.parametrize(("mebibytes", "is_read"), [(15, True), (20, False)])
async def test_a_long_response_with_an_unusual_compression_ratio_is_refused(
    hosts: LoopbackServers, mebibytes: int, is_read: bool
) -> None:
    packed = gzip.compress(b"0" * (mebibytes << 20))
    port = hosts.listen(lambda _: ok(packed, "Content-Encoding: gzip"), "127.0.0.1")
    request = WireRequest("GET", "/_matrix/x", seconds=30, max_bytes=64 << 20)
    if is_read:
        assert len((await ask(hosts, f"127.0.0.1:{port}", request)).body) == mebibytes << 20
    else:
        assert "compressed too much" in str(await refused(hosts, f"127.0.0.1:{port}", request))


async def test_a_long_response_that_compresses_like_events_is_read(
    hosts: LoopbackServers,
) -> None:
    said = b"".join(
        hashlib.sha256(b"%d" % number).hexdigest().encode() + b"0" * 500 for number in range(40_000)
    )
    port = hosts.listen(lambda _: ok(gzip.compress(said, 1), "Content-Encoding: gzip"), "127.0.0.1")
    request = WireRequest("GET", "/_matrix/x", seconds=30, max_bytes=64 << 20)
    assert (await ask(hosts, f"127.0.0.1:{port}", request)).body == said


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"100\r\n" + b"x" * 256 + b"\r\n" + b"f00\r\n" + b"x" * 3840,
    ],
)
async def test_a_body_that_is_too_long_is_not_read(hosts: LoopbackServers, answer: bytes) -> None:
    port = hosts.listen(lambda _: answer, "127.0.0.1")
    error = await refused(
        hosts, f"127.0.0.1:{port}", WireRequest("GET", "/_matrix/x", seconds=30, max_bytes=1000)
    )
    assert isinstance(error, AnswerTooLong)
    assert "longer than 1000 bytes" in str(error)


async def test_a_head_without_end_is_not_read(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: b"HTTP/1.1 200 OK\r\n" + b"X-Header: y\r\n" * 20_000, "127.0.0.1")
    assert "head" in str(await refused(hosts, f"127.0.0.1:{port}"))


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.example ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\n\r\n",
        b"HTTP/1.1 -5 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 1000 OK\r\nContent-Length: 0\r\n\r\n",
        b"ICY/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
    ],
    ids=["another protocol", "length", "coding", "negative", "large", "name", "line"],
)
async def test_an_invalid_http_response_is_an_error(hosts: LoopbackServers, answer: bytes) -> None:
    port = hosts.listen(lambda _: answer, "127.0.0.1")
    assert "no valid HTTP" in str(await refused(hosts, f"127.0.0.1:{port}"))


async def test_a_truncated_response_is_an_error(hosts: LoopbackServers) -> None:
    def answer(_: bytes) -> bytes:
        hosts.connections[-1].last_words = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf"
        return b""

    port = hosts.listen(answer, "127.0.0.1")
    assert "broke within the answer" in str(await refused(hosts, f"127.0.0.1:{port}"))


async def test_a_response_that_arrives_byte_by_byte_times_out(
    hosts: LoopbackServers,
) -> None:
    def drip(speaker: LoopbackConnection) -> None:
        if speaker.write(b"x"):
            CLOCK.callLater(0.05, drip, speaker)

    def answer(_: bytes) -> bytes:
        CLOCK.callLater(0.05, drip, hosts.connections[-1])
        return b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n"

    port = hosts.listen(answer, "127.0.0.1")
    error = await refused(hosts, f"127.0.0.1:{port}", WireRequest("GET", "/_matrix/x", seconds=0.5))
    assert "within 0.5 seconds" in str(error)


async def test_a_response_of_unknown_length_ends_with_its_connection(
    hosts: LoopbackServers,
) -> None:
    def answer(_: bytes) -> bytes:
        hosts.connections[-1].last_words = b"HTTP/1.0 200 OK\r\n\r\nwhole"
        return b""

    port = hosts.listen(answer, "127.0.0.1")
    assert (await ask(hosts, f"127.0.0.1:{port}")).body == b"whole"


async def test_a_silent_server_times_out_and_its_connection_is_closed(
    hosts: LoopbackServers,
) -> None:
    port = hosts.listen(lambda _: None, "127.0.0.1")
    error = await refused(hosts, f"127.0.0.1:{port}", WireRequest("GET", "/_matrix/x", seconds=0.3))
    assert error.retryable
    assert hosts.pool.count_idle() == 0


async def test_interim_responses_are_skipped(hosts: LoopbackServers) -> None:
    port = hosts.listen(
        lambda _: b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok(b"{}"), "127.0.0.1"
    )
    answer = await ask(hosts, f"127.0.0.1:{port}")
    assert (answer.status, answer.body) == (200, b"{}")
    assert "link" not in answer.headers


async def test_redirects_of_the_api_are_not_followed(hosts: LoopbackServers) -> None:
    port = hosts.listen(
        lambda _: b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "127.0.0.1"
    )
    assert (await ask(hosts, f"127.0.0.1:{port}")).status == 302


async def test_a_second_response_is_not_matched_to_the_next_request(
    hosts: LoopbackServers,
) -> None:
    answers = [ok(b"1") + ok(b"surplus"), ok(b"2")]
    port = hosts.listen(lambda _: answers.pop(0), "127.0.0.1")
    wire, name = hosts.wire(), ServerName(f"127.0.0.1:{port}")
    assert (await wire.exchange(name, GET)).body == b"1"
    assert (await wire.exchange(name, GET)).body == b"2"


async def test_an_idle_connection_on_which_data_comes_is_closed(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"1"), "127.0.0.1")
    wire, name = hosts.wire(), ServerName(f"127.0.0.1:{port}")
    await wire.exchange(name, GET)
    hosts.connections[0].write(ok(b"surplus"))
    await deferLater(CLOCK, 0.2, lambda: None)
    assert hosts.pool.count_idle() == 0
    assert (await wire.exchange(name, GET)).body == b"1"
    assert len(hosts.connections) == 2


# ---- connections that are kept


async def test_an_idempotent_request_on_a_closed_connection_is_sent_again(
    hosts: LoopbackServers,
) -> None:
    answers = [ok(b"1"), b"", ok(b"2")]
    port = hosts.listen(lambda _: answers.pop(0), "127.0.0.1")
    wire, name = hosts.wire(), ServerName(f"127.0.0.1:{port}")
    assert (await wire.exchange(name, GET)).body == b"1"
    assert (await wire.exchange(name, GET)).body == b"2"
    assert len(hosts.connections) == 2


async def test_a_post_is_not_sent_twice(hosts: LoopbackServers) -> None:
    answers = [ok(b"1"), b"", ok(b"2")]
    port = hosts.listen(lambda _: answers.pop(0), "127.0.0.1")
    wire, name = hosts.wire(), ServerName(f"127.0.0.1:{port}")
    post = WireRequest(
        "POST", "/_matrix/x", (("Content-Type", "application/json"),), b"{}", seconds=30
    )
    assert (await wire.exchange(name, post)).body == b"1"
    with pytest.raises(RemoteError):
        await wire.exchange(name, post)
    assert len(hosts.requests) == 2


async def test_a_post_is_not_sent_on_a_connection_that_was_idle_for_some_seconds(
    hosts: LoopbackServers,
) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "127.0.0.1")
    wire, name = hosts.wire(), ServerName(f"127.0.0.1:{port}")
    post = WireRequest(
        "POST", "/_matrix/x", (("Content-Type", "application/json"),), b"{}", seconds=30
    )
    for _ in range(2):
        await wire.exchange(name, post)
    assert len(hosts.connections) == 1
    await deferLater(CLOCK, 3.1, lambda: None)
    await wire.exchange(name, GET)
    assert len(hosts.connections) == 1
    await deferLater(CLOCK, 3.1, lambda: None)
    await wire.exchange(name, post)
    assert len(hosts.connections) == 2


async def test_eight_requests_at_most_go_to_one_host_at_once(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: None, "127.0.0.1")
    wire, name = hosts.wire(), ServerName(f"127.0.0.1:{port}")
    asked = [Deferred.fromCoroutine(wire.exchange(name, GET)) for _ in range(12)]
    await deferLater(CLOCK, 0.5, lambda: None)
    assert len(hosts.requests) == 8
    for each in hosts.connections:
        each.write(ok(b"1"))
    await deferLater(CLOCK, 0.5, lambda: None)
    assert (len(hosts.requests), len(hosts.connections)) == (12, 8)
    for each in hosts.connections:
        each.write(ok(b"2"))
    assert sorted([(await each).body for each in asked]) == [b"1"] * 8 + [b"2"] * 4


@pytest.mark.parametrize(
    "answer", [ok(b"{}", "Connection: close"), b"nothing good\r\n\r\n", b"", None]
)
async def test_a_host_without_connections_uses_no_memory(
    hosts: LoopbackServers, answer: bytes | None
) -> None:
    port = hosts.listen(lambda _: answer, "127.0.0.1")
    request = WireRequest("GET", "/_matrix/x", seconds=0.3)
    name = ServerName(f"127.0.0.1:{port}")
    with nullcontext() if answer and answer.startswith(b"HTTP") else pytest.raises(RemoteError):
        await hosts.wire().exchange(name, request)
    await refused(hosts, "nowhere.example:1")
    await deferLater(CLOCK, 0.1, lambda: None)
    assert hosts.pool.count_hosts() == 0


async def test_a_connection_before_http_1_1_is_not_kept(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}").replace(b"HTTP/1.1", b"HTTP/1.0"), "127.0.0.1")
    assert (await ask(hosts, f"127.0.0.1:{port}")).body == b"{}"
    assert hosts.pool.count_idle() == 0


async def test_a_response_of_unknown_length_is_incomplete_if_its_connection_breaks(
    hosts: LoopbackServers,
) -> None:
    def answer(_: bytes) -> bytes:
        CLOCK.callLater(0.1, hosts.connections[-1].end)
        return b"HTTP/1.1 200 OK\r\n\r\nhalf"

    port = hosts.listen(answer, "127.0.0.1")
    assert "broke within the answer" in str(await refused(hosts, f"127.0.0.1:{port}"))


async def test_a_connection_is_closed_if_the_server_says_so(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}", "Connection: close"), "127.0.0.1")
    wire, name = hosts.wire(), ServerName(f"127.0.0.1:{port}")
    await wire.exchange(name, GET)
    await wire.exchange(name, GET)
    assert len(hosts.connections) == 2
    assert hosts.pool.count_idle() == 0
