"""Responses, errors, bodies, connections, and clients that disconnect."""

import gzip
import re
from email.utils import formatdate
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from homeserver.http import probes
from homeserver.http.addresses import find_forwarded_address, normalise_address
from homeserver.http.channel import LINGER_BYTES, LINGER_SECONDS
from homeserver.http.response_head import ResponseHeadCache
from homeserver.http.site import DISCONNECTED
from homeserver.http.site_options import SiteOptions
from tests.helpers.http import Client, Connection, client_for
from tests.http import endpoints
from tests.http.conftest import TOKENS
from tests.http.endpoints import Bell

OBJECT = "/_matrix/client/v3/object"
SYNC = "/_matrix/client/v3/sync"
SLOW = "/_matrix/client/v3/slow"
UPLOAD = "/_matrix/media/v3/upload"
WHO = "/_matrix/client/v3/who"


def _with(options: SiteOptions, bell: Bell | None = None) -> Client:
    return client_for([endpoints], {Bell: bell or Bell()}, tokens=TOKENS, options=options)


# Errors.


def test_a_matrix_error_sets_status_and_body(client: Client) -> None:
    response = client.request("GET", "/fails/forbidden")
    assert (response.status, response.json) == (
        403,
        {"errcode": "M_FORBIDDEN", "error": "No, not you"},
    )


def test_a_rate_limit_sets_retry_after(client: Client) -> None:
    assert client.request("GET", "/fails/limit").headers["retry-after"] == "2"


def test_a_failed_remote_server_is_a_502(client: Client) -> None:
    response = client.request("GET", "/fails/remote")
    assert (response.status, response.errcode) == (502, "M_UNKNOWN")
    assert b"secret" not in response.body


@pytest.mark.parametrize("how", ["bug", "header", "unencodable"])
def test_a_bug_is_a_500_with_a_logged_traceback(client: Client, how: str) -> None:
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        events.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        response = client.request("GET", "/fails/" + how)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert (response.status, response.errcode) == (500, "M_UNKNOWN")
    (logged,) = [
        event for event in events if event.get("request_id") == response.json["request_id"]
    ]
    assert "Error" in logged["log_failure"].getTraceback()
    assert b"Traceback" not in response.body


def test_an_unavailable_database_is_a_503_and_one_log_line(client: Client) -> None:
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        response = client.request("GET", "/fails/database")
    finally:
        globalLogPublisher.removeObserver(observe)
    assert (response.status, response.errcode, response.headers["retry-after"]) == (
        503,
        "M_UNKNOWN",
        "1",
    )
    assert b"refused" not in response.body
    (line,) = [line for line in lines if "database" in line]
    assert re.fullmatch("the database failed request [0-9a-z]+: connection refused", line), line


def test_a_cancelled_wait_is_a_503(client: Client) -> None:
    assert client.request("GET", "/fails/cancelled").status == 503


# Headers.


def test_every_response_has_cross_origin_headers(client: Client) -> None:
    for response in (
        client.request("GET", WHO),
        client.request("GET", "/nowhere"),
        client.request("GET", "/fails/forbidden"),
        client.request("GET", "/page"),
        client.request("POST", OBJECT, body=b"x" * 70_000),
        client.request("OPTIONS", "/nowhere"),
    ):
        assert response.headers["access-control-allow-origin"] == "*"
        assert "PUT" in response.headers["access-control-allow-methods"]
        assert "Authorization" in response.headers["access-control-allow-headers"]


def test_a_preflight_runs_no_handler(client: Client, bell: Bell) -> None:
    response = client.request("OPTIONS", SLOW)
    assert (response.status, response.body) == (204, b"")
    assert not bell.waiting


def test_a_handler_may_set_status_and_headers(client: Client) -> None:
    response = client.request("GET", "/page")
    assert (response.status, response.body) == (202, b"<p>")
    assert (response.headers["content-type"], response.headers["cache-control"]) == (
        "text/html",
        "max-age=5",
    )
    assert response.headers["x-own"] == "1"


def test_large_text_is_compressed_if_the_client_accepts_it() -> None:
    client = _with(SiteOptions(compress=True))
    plain = client.request("GET", "/big")
    packed = client.request("GET", "/big", headers={"Accept-Encoding": "br, gzip;q=1.0"})
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body) // 10
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
    assert (
        "content-encoding"
        not in client.request("GET", WHO, headers={"Accept-Encoding": "gzip"}).headers
    )


def test_compression_is_off_by_default(client: Client) -> None:
    assert (
        "content-encoding"
        not in client.request("GET", "/big", headers={"Accept-Encoding": "gzip"}).headers
    )


# Bodies.


def test_a_long_body_is_refused_before_it_is_read(client: Client) -> None:
    connection = client.connect()
    connection.send(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n" % OBJECT.encode())
    connection.send(b"Expect: 100-continue\r\n\r\n")
    (response,) = connection.answers()
    assert (response.status, response.errcode) == (413, "M_TOO_LARGE")
    assert response.headers["connection"] == "close"
    assert b"100 Continue" not in connection.received()


def test_a_chunked_body_is_refused_when_it_becomes_too_long(client: Client) -> None:
    connection = client.connect()
    connection.send(
        b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % OBJECT.encode()
    )
    for _ in range(16):
        connection.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
    assert not connection.received()
    connection.send(b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
    (response,) = connection.answers()
    assert (response.status, response.errcode) == (413, "M_TOO_LARGE")


def test_input_after_a_refusal_is_discarded_for_a_moment(client: Client) -> None:
    def refused() -> Connection:
        connection = client.connect()
        connection.send(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" % OBJECT.encode()
        )
        connection.send(b"x" * 1000)
        assert len(connection.answers()) == 1
        assert not connection.transport.disconnecting
        return connection

    connection = refused()
    connection.send(b"x" * LINGER_BYTES)
    assert connection.transport.disconnecting
    connection = refused()
    client.clock.advance(LINGER_SECONDS)
    assert connection.transport.disconnecting


def test_a_chunked_body_is_read_completely(client: Client) -> None:
    connection = client.connect()
    connection.send(
        b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % OBJECT.encode()
    )
    connection.send(b'5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n')
    assert connection.answers()[0].json == {"a": 1}


def test_a_large_body_for_an_unknown_path_is_not_read(client: Client) -> None:
    connection = client.connect()
    connection.send(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
    assert connection.answers()[0].errcode == "M_UNRECOGNIZED"


# Connections.


def test_a_connection_is_kept_and_requests_are_answered_in_order(
    client: Client, bell: Bell
) -> None:
    connection = client.connect()
    slow = b"POST %s HTTP/1.1\r\nHost: x\r\n\r\n" % SLOW.encode()
    who = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % WHO.encode()
    connection.send(slow + who + who)
    assert not connection.received()
    bell.ring()
    assert [response.status for response in connection.answers()] == [200, 200, 200]
    connection.send(who)
    assert len(connection.answers()) == 4
    assert not connection.transport.disconnecting


def test_pipelined_requests_in_pieces_are_answered(client: Client, bell: Bell) -> None:
    """However the data is split, and whichever piece arrives after the previous response."""
    slow = b"POST %s HTTP/1.1\r\nHost: x\r\n\r\n" % SLOW.encode()
    body = b'{"text": "a message"}'
    long = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (
        OBJECT.encode(),
        len(body),
        body,
    )
    data = slow + long + slow + long
    for cut in range(1, len(data)):
        for later in {min(cut + 3, len(data)), len(data)}:
            connection = client.connect()
            connection.send(data[:cut])
            connection.send(data[cut:later])
            bell.ring()
            client.clock.advance(0)
            if later < len(data):
                connection.send(data[later:])
            for _ in range(3):
                bell.ring()
                client.clock.advance(0)
            assert [response.status for response in connection.answers()] == [200] * 4, (cut, later)
            connection.close()


@pytest.mark.parametrize(
    "head", [b"GET %s HTTP/1.0\r\n\r\n", b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]
)
def test_a_connection_is_closed_on_request(client: Client, head: bytes) -> None:
    connection = client.connect()
    connection.send(head % WHO.encode())
    assert connection.answers()[0].headers["connection"] == "close"
    assert connection.transport.disconnecting


def test_an_idle_connection_is_closed_but_a_long_poll_is_not(client: Client, bell: Bell) -> None:
    idle, poll = client.connect(), client.start("GET", SYNC, token="alice")
    client.clock.advance(61)
    assert idle.transport.disconnecting
    assert not poll.connection.transport.disconnecting
    bell.ring()
    assert poll.answer.json == {"text": "rung", "caller": "@alice:example.org"}


HALF_A_HEAD = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: x\r\nX-Slow: "


@pytest.mark.parametrize(
    ("start", "earliest", "latest"),
    [
        (HALF_A_HEAD, 60, 120),
        (
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" % OBJECT.encode(),
            300,
            360,
        ),
    ],
)
def test_a_request_that_arrives_too_slowly_is_refused(
    client: Client, start: bytes, earliest: int, latest: int
) -> None:
    connection = client.connect()
    started = client.clock.seconds()
    connection.send(start)
    while not connection.received() and client.clock.seconds() < started + latest:
        connection.send(b"x")
        client.clock.advance(15)
    (response,) = connection.answers()
    assert (response.status, response.errcode) == (408, "M_UNKNOWN")
    assert earliest <= client.clock.seconds() - started < latest


def test_a_long_body_may_take_longer_than_the_idle_timeout(client: Client) -> None:
    """Within the limits of the body budget."""
    connection = client.connect()
    connection.send(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" % UPLOAD.encode()
    )
    for _ in range(10):
        client.clock.advance(29)
        connection.send(b"x" * 300_000)
    assert connection.answers()[0].status == 200


def test_a_disconnect_cancels_the_long_poll(client: Client, bell: Bell) -> None:
    pending = client.start("GET", SYNC, token="alice")
    assert len(bell.waiting) == 1
    pending.disconnect()
    assert (bell.cancelled, bell.waiting) == (1, [])
    assert client.access_log.records[-1].status == DISCONNECTED


def test_a_disconnect_does_not_cancel_a_write(client: Client, bell: Bell) -> None:
    client.start("POST", SLOW).disconnect()
    assert (bell.cancelled, len(bell.waiting)) == (0, 1)
    bell.ring()
    assert bell.finished == 1


MALFORMED = [
    b"nonsense\r\n\r\n",
    b"GET /\r\n\r\n",
    b"GET / HTTP/2.0\r\n\r\n",
    b"GET ftp://chat.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"G(T / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nBad Name: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\nHost: x\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: "
    b"chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nX-Host: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: y\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
]


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("http://chat.example", WHO),
        ("HTTPS://chat.example:8448", WHO),
        ("http://[::1]", f"{WHO}?a=http://b/c"),
    ],
)
def test_an_absolute_uri_is_reduced_to_its_path(client: Client, address: str, path: str) -> None:
    """RFC 9112 section 3.2.2"""
    connection = client.connect()
    connection.send(f"GET {address}{path} HTTP/1.1\r\nHost: chat.example\r\n\r\n".encode())
    connection.send(f"GET {address} HTTP/1.1\r\nHost: chat.example\r\n\r\n".encode())
    assert [response.status for response in connection.answers()] == [200, 404]


@pytest.mark.parametrize("data", MALFORMED)
def test_malformed_input_is_a_400_and_closes_the_connection(client: Client, data: bytes) -> None:
    connection = client.connect()
    connection.send(data + b"GET /_matrix/client/v3/who HTTP/1.1\r\nHost: x\r\n\r\n")
    (response,) = connection.answers()
    assert (response.status, response.errcode) == (400, "M_UNKNOWN")
    assert response.headers["connection"] == "close"
    client.clock.advance(LINGER_SECONDS)
    assert connection.transport.disconnecting
    connection.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /?filter=" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /?filter=" + b"a" * 20_000, 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 1000 + b"\r\n", 431),
    ],
)
def test_a_head_that_is_too_long_is_refused(client: Client, data: bytes, status: int) -> None:
    connection = client.connect()
    connection.send(data)
    (response,) = connection.answers()
    assert (response.status, response.errcode) == (status, "M_TOO_LARGE")
    assert "16384" in response.json["error"]
    connection.close()


def test_an_unknown_method_is_refused(client: Client) -> None:
    response = client.request("BREW", "/pot")
    assert (response.status, response.errcode, response.headers["connection"]) == (
        405,
        "M_UNRECOGNIZED",
        "close",
    )


_BYTES_CLIENT = client_for([endpoints], {Bell: Bell()}, tokens=TOKENS)
_PIECES = st.sampled_from(
    [
        *(
            b"GET ",
            b"POST ",
            b"PUT ",
            b"/",
            OBJECT.encode(),
            UPLOAD.encode(),
            b" HTTP/1.1\r\n",
            b" HTTP/1.0\r\n",
        ),
        *(
            b"Content-Length: 3\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"3\r\n",
        ),
        *(
            b"Host: x\r\n",
            b"Connection: close\r\n",
            b"Content-Length: 999999999\r\n",
            b"{}",
            b"0\r\n",
            b"\r\n",
        ),
        *(b"?a=%", b"\0", b"\xff", b" ", b":"),
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(_PIECES | st.binary(max_size=8), max_size=12).map(b"".join), max_size=4))
def test_no_bytes_break_a_connection(writes: list[bytes]) -> None:
    connection = _BYTES_CLIENT.connect()
    for data in writes:
        connection.send(data)
    for response in connection.answers():
        assert response.status < 500
        assert response.status < 400 or response.errcode.startswith("M_")
    connection.close()


# Client addresses.


def test_forwarded_headers_are_trusted_only_behind_a_proxy(client: Client) -> None:
    headers = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9", "X-Forwarded-Proto": "https"}
    direct = client.request("GET", WHO, headers=headers, ip="127.0.0.1").json
    assert (direct["ip"], direct["secure"]) == ("127.0.0.1", False)
    proxied = _with(SiteOptions(x_forwarded=True)).request("GET", WHO, headers=headers).json
    assert (proxied["ip"], proxied["secure"]) == ("203.0.113.9", True)
    further = SiteOptions(x_forwarded=True, trusted_proxies=(ip_network("203.0.113.0/24"),))
    assert _with(further).request("GET", WHO, headers=headers).json["ip"] == "198.51.100.7"
    nonsense = _with(further).request("GET", WHO, headers={"X-Forwarded-For": "<script>"}).json
    assert nonsense["ip"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1:5555 ", "192.0.2.1"),
        ("[2001:DB8::1]:443", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("unknown", None),
        ("", None),
    ],
)
def test_addresses_are_normalised(written: str, address: str | None) -> None:
    assert normalise_address(written) == address


def test_addresses_left_of_an_invalid_one_are_not_trusted() -> None:
    trusted = (ip_network("10.0.0.0/8"),)
    assert find_forwarded_address(["1.1.1.1, bogus, 10.0.0.1"], trusted) == "10.0.0.1"
    assert find_forwarded_address(["1.1.1.1", "2.2.2.2"], trusted) == "2.2.2.2"
    assert find_forwarded_address(["10.0.0.1"], trusted) == "10.0.0.1"


def test_a_handler_sees_agent_and_cookies(client: Client) -> None:
    response = client.request(
        "GET", WHO, headers={"User-Agent": "nheko/1", "Cookie": "a=1; b=2"}
    ).json
    assert (response["agent"], response["cookies"]) == ("nheko/1", {"a": "1", "b": "2"})


def test_a_valid_request_id_of_the_proxy_is_used() -> None:
    client = _with(SiteOptions(request_id_header="X-Request-Id"))
    assert client.request("GET", WHO, headers={"X-Request-Id": "abc-123"}).json["id"] == "abc-123"
    assert client.request("GET", WHO, headers={"X-Request-Id": "a\tb"}).json["id"] != "a\tb"
    assert client.request("GET", WHO).json["id"]


# Resources and probes.


def test_a_listener_serves_only_its_resources() -> None:
    client = _with(SiteOptions(resources=frozenset({"client"})))
    assert client.request("GET", WHO).status == 200
    assert (
        client.request("GET", "/_synapse/admin/v1/thing", token="admin").errcode == "M_UNRECOGNIZED"
    )


def test_health_and_metrics_are_served() -> None:
    registry = CollectorRegistry()
    client = client_for(
        [endpoints, probes], {Bell: Bell(), CollectorRegistry: registry}, registry=registry
    )
    client.request("GET", WHO)
    client.request("PROPFIND", "/pot")
    pending = client.start("POST", SLOW)
    assert client.request("GET", "/health").body == b"OK"
    text = client.request("GET", "/metrics").body.decode()
    assert 'mahalla_http_requests_total{code="200",endpoint="get_who",method="GET"} 1.0' in text
    assert 'mahalla_http_requests_total{code="404",endpoint="none",method="other"} 1.0' in text
    assert "mahalla_http_requests_in_flight 2.0" in text
    pending.disconnect()
    assert "mahalla_http_requests_in_flight 1.0" in client.request("GET", "/metrics").body.decode()


@given(st.lists(st.integers(0, 3 * 86400), min_size=1, max_size=5))
def test_the_date_header_follows_the_clock(steps: list[int]) -> None:
    lines, now = ResponseHeadCache(), 1_700_000_000
    for step in steps:
        now += step
        line = f"Date: {formatdate(now, usegmt=True)}\r\n".encode()
        assert line in lines.json_head_at(now + 0.4)
        assert lines.date_line_at(now + 0.5) == line
