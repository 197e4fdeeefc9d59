"""Host and Expect headers: as clients and proxies send them, and invalid ones.

RFC 9112 section 3.2, RFC 9110 section 10.1.1
"""

import pytest

from tests.helpers.http import Client

OBJECT = "/_matrix/client/v3/object"


def test_expect_100_continue_is_answered(client: Client) -> None:
    connection = client.connect()
    connection.send(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        % OBJECT.encode()
    )
    assert connection.received() == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(b"{}")
    assert connection.answers()[0].status == 200


def test_other_expectations_are_refused(client: Client) -> None:
    """RFC 9110 section 10.1.1"""
    connection = client.connect()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: %b\r\n\r\n"
    connection.send(head % (OBJECT.encode(), b"200-ok"))
    assert [(response.status, response.errcode) for response in connection.answers()] == [
        (417, "M_UNKNOWN")
    ]
    connection = client.connect()
    connection.send(head % (OBJECT.encode(), b"100-Continue") + b"{}")
    assert connection.received().startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


@pytest.mark.parametrize(
    "head",
    [
        b"POST %s HTTP/1.0\r\n",
        b"POST %s HTTP/1.0\r\nHost: chat.example\r\nConnection: close\r\n",
        b"POST %s HTTP/1.0\r\nHost:\r\nConnection: keep-alive\r\n",
        b"POST %s HTTP/1.0\r\nExpect: 200-ok\r\n",
        b"POST %s HTTP/1.1\r\nHost:\r\n",
        b"POST %s HTTP/1.1\r\nHOST: chat.example:8448\r\n",
        b"POST %s HTTP/1.1\r\nhost:[2001:db8::1]:8448\r\nX-Forwarded-Host: x\r\nForwarded: "
        b"host=y\r\n",
        b"POST http://chat.example:8008%s HTTP/1.1\r\nHost: another.example\r\n",
        b"POST https://[::1]%s HTTP/1.1\r\nHost: [::1]\r\n",
        b"POST http://chat.example%s HTTP/1.0\r\n",
        b"POST %s HTTP/1.1\r\nHost: x\r\nExpect:\r\n",
        b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: \r\n",
    ],
)
def test_usual_host_headers_are_accepted(client: Client, head: bytes) -> None:
    connection = client.connect()
    connection.send(head % OBJECT.encode() + b"Content-Length: 2\r\n\r\n{}")
    assert connection.received().startswith(b"HTTP/1.1 200 ")


def test_expect_is_ignored_in_http_1_0(client: Client) -> None:
    connection = client.connect()
    connection.send(
        b"POST %s HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n{}" % OBJECT.encode()
    )
    assert connection.received().startswith(b"HTTP/1.1 200 ")


WHO = "/_matrix/client/v3/who"
INVALID_HOSTS = [
    b"a b",
    b"a,b",
    b"a/b",
    b"a@b",
    b"http://a",
    b":80",
    b"a:b",
    b"a:1:2",
    b"[::1",
    b"[]",
    b"a%2",
    b"a\\b",
    b'a"',
    b"<a>",
]
MALFORMED = [
    *(
        b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host
        for host in (*INVALID_HOSTS, "ä.example".encode())
    ),
    b"GET / HTTP/1.1\r\nX: y\r\nHost: a,b\r\nX: y\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n",
    b"GET http://x/ HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"GET http://x/ HTTP/1.1\r\nHost:\r\nHost:\r\n\r\n",
]
HOSTS = [
    *("x", "chat.example:8448", "my_service:8008", "1.2.3.4", "[::1]:80", "[v1.a:b]"),
    *("a%20b", "a+b;c", "x:", "X.Example. \t", "xn--e1afmkfd.uz"),
]


@pytest.mark.parametrize("data", MALFORMED)
def test_an_invalid_host_is_a_malformed_request(client: Client, data: bytes) -> None:
    connection = client.connect()
    connection.send(data)
    (response,) = connection.answers()
    assert (response.status, response.errcode, response.headers["connection"]) == (
        400,
        "M_UNKNOWN",
        "close",
    )


@pytest.mark.parametrize("host", HOSTS)
def test_valid_hosts_are_accepted(client: Client, host: str) -> None:
    """RFC 3986 section 3.2"""
    connection = client.connect()
    for _ in range(2):
        connection.send(f"GET {WHO} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert [response.status for response in connection.answers()] == [200, 200]


def test_an_empty_host_header_is_accepted(client: Client) -> None:
    connection = client.connect()
    for _ in range(2):
        connection.send(f"GET http://chat.example{WHO} HTTP/1.1\r\nHost:\r\n\r\n".encode())
    connection.send(f"GET {WHO} HTTP/1.1\r\nHost: \r\n\r\n".encode())
    assert [response.status for response in connection.answers()] == [200, 200, 200]
