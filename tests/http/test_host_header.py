"""Valid and invalid Host headers. RFC 9112 section 3.2"""

import pytest

from tests.helpers.http import Client

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
