"""Requests to web servers that are no Matrix servers: plain HTTP, redirects, and addresses that
are never contacted."""

import gzip
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from federation.http_client.client import HttpClient
from federation.http_client.errors import OutboundError, ResponseTooLong
from federation.http_client.tls import TlsTrust
from tests.federation.protocol.strategies import texts
from tests.helpers.loopback_servers import CLOCK, LoopbackServers, ok

pytestmark = pytest.mark.reactor(60)


def redirect(place: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()


async def test_a_post_is_sent_without_tls(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}"))
    answer = await hosts.client().request(
        "POST", f"http://127.0.0.1:{port}/push?a=b", [("X-A", "b")], b"body"
    )
    assert (answer.status, answer.body) == (200, b"{}")
    assert hosts.requests[0].startswith(b"POST /push?a=b HTTP/1.1\r\n")
    head, _, body = hosts.requests[0].partition(b"\r\n\r\n")
    assert {b"X-A: b", b"Content-Length: 4"} <= set(head.split(b"\r\n"))
    assert body == b"body"


@implementer(IAgent)
class Recorder:
    """An agent that records the addresses which it is asked for."""

    def __init__(self) -> None:
        self.uris: list[bytes] = []

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,  # noqa: N803
    ) -> Deferred[IResponse]:
        self.uris.append(uri)
        return fail(OutboundError("recorded"))


@given(
    st.sampled_from(
        [
            "south.example",
            "south_west.example:8448",
            "South.example",
            "127.0.0.1",
            "[2001:db8::1]:8448",
        ]
    ),
    texts,
    st.lists(st.tuples(texts, texts), max_size=3),
)
def test_the_request_target_is_sent_as_it_was_signed(
    host: str, segment: str, query: list[tuple[str, str]]
) -> None:
    path = f"/_matrix/{quote(segment, safe='')}"
    url = f"https://{host}{path}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")
    agent = Recorder()
    work = HttpClient(clock=CLOCK, agent=agent).exchange(
        "GET", url, (), b"", max_bytes=1, take=None
    )
    Deferred.fromCoroutine(work).addErrback(lambda failure: failure.trap(OutboundError))
    assert agent.uris == [url.encode()]


async def test_a_certificate_authority_of_the_environment_is_trusted(
    hosts: LoopbackServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = hosts.listen(lambda _: ok(b"{}"), "identity.example")
    hosts.names.addresses["identity.example"] = ["127.0.0.1"]
    url = f"https://identity.example:{port}/"
    with pytest.raises(OutboundError):
        await hosts.client(trust=TlsTrust()).request("GET", url)
    monkeypatch.setenv("SSL_CERT_FILE", str(hosts.authority.path))
    assert (await hosts.client(trust=TlsTrust()).request("GET", url)).status == 200


async def test_cookies_are_neither_kept_nor_sent(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}", "Set-Cookie: a=b; Path=/"))
    client = hosts.client()
    for _ in range(2):
        await client.request("GET", f"http://127.0.0.1:{port}/")
    assert len(hosts.requests) == 2
    assert not any(b"cookie" in request.lower() for request in hosts.requests)


async def test_a_host_name_may_have_an_underscore(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda _: ok(b"{}"))
    hosts.names.addresses["push_gateway"] = ["127.0.0.1"]
    assert (await hosts.client().request("GET", f"http://push_gateway:{port}/")).status == 200


@pytest.mark.parametrize("status", [200, 502])
@pytest.mark.parametrize("said", ["length", "packed"])
async def test_the_error_for_a_too_long_response_has_its_status(
    hosts: LoopbackServers, status: int, said: str
) -> None:
    """Also where it is only when it is unpacked that it turns out to be."""
    answer = (
        ok(bytes(20_000))
        if said == "length"
        else ok(gzip.compress(bytes(20_000)), "Content-Encoding: gzip")
    )
    port = hosts.listen(lambda _: answer.replace(b"200 OK", f"{status} X".encode()))
    with pytest.raises(ResponseTooLong, match="longer than 10000") as caught:
        await hosts.client().request("POST", f"http://127.0.0.1:{port}/push", max_bytes=10_000)
    assert caught.value.status == status


@pytest.mark.parametrize("status", [200, 502])
@pytest.mark.parametrize("body", ["breaks off", "never ends", "is no body"])
async def test_the_error_for_an_incomplete_response_has_its_status(
    hosts: LoopbackServers, status: int, body: str
) -> None:
    head = f"HTTP/1.1 {status} X\r\n".encode()

    def answer(_: bytes) -> bytes:
        if body == "is no body":
            return head + b"Transfer-Encoding: chunked\r\n\r\nx\r\n"
        begun = head + b"Content-Length: 20\r\n\r\nhalf"
        if body == "never ends":
            return begun
        hosts.connections[-1].last_words = begun
        return b""

    port = hosts.listen(answer)
    with pytest.raises(OutboundError) as caught:
        await hosts.client().request("POST", f"http://127.0.0.1:{port}/push", seconds=0.3)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("after", "endless"),
    [(b"0\r\n", b"X-%d: y\r\n"), (b"0\r\nX: ", b"%d"), (b"2;", b"x%d")],
    ids=["trailers", "a trailer", "an extension"],
)
async def test_endless_trailers_of_a_chunked_body_are_an_error(
    hosts: LoopbackServers, after: bytes, endless: bytes
) -> None:
    """After a body that never grows longer one may send for as long as is waited."""
    begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n" + after
    port = hosts.listen(lambda _: begun + b"".join(endless % number for number in range(100_000)))
    with pytest.raises(OutboundError, match="its answer is") as caught:
        await hosts.client().request("POST", f"http://127.0.0.1:{port}/push", seconds=20)
    assert caught.value.status == 200


async def test_trailers_are_not_read_as_headers(hosts: LoopbackServers) -> None:
    body = b"2\r\n{}\r\n0\r\nRetry-After: 3600\r\nX-Late: a\r\n\r\n"
    port = hosts.listen(
        lambda _: (
            b"HTTP/1.1 429 X\r\nRetry-After: \t60 \t\r\nTransfer-Encoding: chunked\r\n\r\n" + body
        )
    )
    answer = await hosts.client().request("GET", f"http://127.0.0.1:{port}/")
    assert answer.headers == {"retry-after": "60"}


@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
async def test_the_error_for_an_incomplete_head_has_no_status(
    hosts: LoopbackServers, begun: bytes
) -> None:
    def answer(_: bytes) -> bytes:
        hosts.connections[-1].last_words = begun
        return b""

    port = hosts.listen(answer)
    with pytest.raises(OutboundError) as caught:
        await hosts.client().request("POST", f"http://127.0.0.1:{port}/push")
    assert caught.value.status is None


async def test_redirects_are_followed_up_to_the_limit(hosts: LoopbackServers) -> None:
    port = hosts.listen(lambda request: redirect("/b") if b"GET /a" in request else ok(b"b"))
    answer = await hosts.client().request("GET", f"http://127.0.0.1:{port}/a", redirects=1)
    assert (answer.url, answer.body) == (f"http://127.0.0.1:{port}/b", b"b")
    assert (await hosts.client().request("GET", f"http://127.0.0.1:{port}/a")).status == 302


async def test_a_redirect_to_a_denied_address_is_not_followed(hosts: LoopbackServers) -> None:
    inside = hosts.listen(lambda _: ok(b"secret"), address="::1")
    port = hosts.listen(lambda _: redirect(f"http://[::1]:{inside}/"))
    with pytest.raises(OutboundError, match="does not contact"):
        await hosts.client(allowed=["127.0.0.1"]).request(
            "GET", f"http://127.0.0.1:{port}/", redirects=3
        )
    assert len(hosts.requests) == 1


async def test_a_client_does_not_reuse_connections_of_another_client(
    hosts: LoopbackServers,
) -> None:
    port = hosts.listen(lambda _: ok(b"secret"))
    await hosts.client().request("GET", f"http://127.0.0.1:{port}/")
    with pytest.raises(OutboundError, match="does not contact"):
        await hosts.client(allowed=[]).request("GET", f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "/path",
        "http:///path",
        "http://user:word@127.0.0.1/",
        "http://127.0.0.1:port/",
        "http://127.0.0.1:99999/",
        "http://[::1/",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/a\r\nHost: evil",
        "http://ex ample/",
        "http://exämple/",
        "https://127.0.0.1/" + "x" * 9000,
    ],
)
async def test_invalid_urls_are_refused(hosts: LoopbackServers, url: str) -> None:
    with pytest.raises(OutboundError):
        await hosts.client().request("GET", url)
