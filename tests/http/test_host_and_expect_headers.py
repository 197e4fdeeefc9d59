"""Host and Expect headers as clients and proxies send them.

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
