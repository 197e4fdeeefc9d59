"""Malicious sites, fetched for previews over real sockets: no access to internal networks, no
endless responses."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IReactorTCP

from federation.http_client.address_policy import AddressPolicy
from federation.http_client.agent import WebAgent
from federation.http_client.client import HttpClient
from federation.http_client.connector import Connector
from federation.http_client.errors import OutboundError
from federation.http_client.resolver import NameResolver, SystemNameResolver
from homeserver.config.outgoing import PRIVATE_NETWORKS
from homeserver.services.previews.fetching import MAX_DOCUMENT_BYTES, MAX_PAGE_BYTES, PreviewFetcher
from homeserver.services.previews.rules import PreviewRules
from storage.engine.executors import InlineExecutor
from storage.media.spool import DiskSpool
from tests.federation.conftest import hosts
from tests.helpers.loopback_servers import CLOCK, FakeNames, LoopbackServers, ok

__all__ = ["hosts"]

pytestmark = pytest.mark.reactor(60)
MAX_PICTURE = 100_000


def _reader(
    hosts: LoopbackServers,
    names: NameResolver | None = None,
    allowed: Sequence[str] = (),
    seconds: float = 30.0,
) -> PreviewFetcher:
    connector = Connector(
        tcp=cast(IReactorTCP, installed_reactor),
        clock=CLOCK,
        names=names
        or SystemNameResolver(
            reactor=cast(ReactorBase, installed_reactor), threads=InlineExecutor()
        ),
        addresses=AddressPolicy(denied=PRIVATE_NETWORKS, allowed=allowed),
        proxy=None,
    )
    web = HttpClient(
        clock=CLOCK, agent=WebAgent(pool=hosts.pool, connector=connector, trust=hosts.trust())
    )
    return PreviewFetcher(
        web=web,
        clock=CLOCK,
        rules=PreviewRules(denied=(), allowed=None),
        headers=(),
        max_image=MAX_PICTURE,
        seconds=seconds,
    )


@pytest.fixture
def spool(tmp_path: Path) -> DiskSpool:
    return DiskSpool(folder=tmp_path, memory_bytes=1 << 20, check_room=lambda: None)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "127.1",
        "0177.0.0.1",
        "0.0.0.0",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "169.254.169.254",
        "10.0.0.1",
    ],
)
async def test_no_url_leads_to_internal_addresses(
    hosts: LoopbackServers, spool: DiskSpool, host: str
) -> None:
    port = hosts.listen(lambda _: ok(b"secret"))
    with pytest.raises(OutboundError):
        await _reader(hosts).fetch(f"http://{host}:{port}/", spool)
    assert hosts.requests == []


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:{}/", "http://2130706433:{}/", "//[::ffff:127.0.0.1]:{}/"]
)
async def test_no_redirect_leads_to_internal_addresses(
    hosts: LoopbackServers, spool: DiskSpool, place: str
) -> None:
    inside = hosts.listen(lambda _: ok(b"secret"))
    location = place.format(inside)
    outside = hosts.listen(
        lambda _: (
            f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
        ),
        address="127.0.0.2",
    )
    with pytest.raises(OutboundError, match="does not contact"):
        await _reader(hosts, allowed=["127.0.0.2"]).fetch(f"http://127.0.0.2:{outside}/", spool)
    assert len(hosts.requests) == 1


class Rebinding(FakeNames):
    """A name that resolves to an external address first, and to an internal one later."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = [["127.0.0.2"], ["127.0.0.1"]]

    async def lookup_addresses(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def test_dns_rebinding_gains_nothing(hosts: LoopbackServers, spool: DiskSpool) -> None:
    names = Rebinding()
    redirect = (
        b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    port = hosts.listen(lambda _: redirect, address="127.0.0.2")
    with pytest.raises(OutboundError, match="does not contact"):
        await _reader(hosts, names, ["127.0.0.2"]).fetch(f"http://moves.example:{port}/", spool)
    assert names.asked == ["moves.example", "moves.example"]
    assert len(hosts.requests) == 1


async def test_only_the_external_one_of_two_addresses_is_contacted(
    hosts: LoopbackServers, spool: DiskSpool
) -> None:
    names = FakeNames()
    names.addresses["both.example"] = ["127.0.0.1", "127.0.0.2"]
    port = hosts.listen(lambda _: ok(b"<title>x", "Content-Type: text/html"), address="127.0.0.2")
    found = await _reader(hosts, names, ["127.0.0.2"]).fetch(f"http://both.example:{port}/", spool)
    assert found.page == b"<title>x"


async def _read(
    hosts: LoopbackServers, spool: DiskSpool, answer: bytes | None, seconds: float = 30.0
) -> bytes | None:
    port = hosts.listen(lambda _: answer)
    return (
        await _reader(hosts, allowed=["127.0.0.1"], seconds=seconds).fetch(
            f"http://127.0.0.1:{port}/", spool
        )
    ).page


async def test_a_silent_site_times_out(hosts: LoopbackServers, spool: DiskSpool) -> None:
    with pytest.raises(OutboundError, match="within"):
        await _read(hosts, spool, None, seconds=0.2)


async def test_an_endless_page_is_read_up_to_a_limit(
    hosts: LoopbackServers, spool: DiskSpool
) -> None:
    for head in (b"", f"Content-Length: {500 * MAX_PAGE_BYTES}\r\n".encode()):
        answer = (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
            + head
            + b"\r\n"
            + b"y" * (3 * MAX_PAGE_BYTES)
        )
        page = await _read(hosts, spool, answer)
        assert page is not None
        assert len(page) == MAX_PAGE_BYTES


async def test_a_compression_bomb_is_unpacked_up_to_a_limit(
    hosts: LoopbackServers, spool: DiskSpool
) -> None:
    bomb = gzip.compress(b"<title>x</title>" + bytes(30 * MAX_PAGE_BYTES))
    page = await _read(hosts, spool, ok(bomb, "Content-Type: text/html", "Content-Encoding: gzip"))
    assert page is not None
    assert len(page) == MAX_PAGE_BYTES
    with pytest.raises(OutboundError):
        await _read(hosts, spool, ok(bomb, "Content-Type: image/png", "Content-Encoding: gzip"))
    port = hosts.listen(
        lambda _: ok(bomb, "Content-Type: application/json", "Content-Encoding: gzip")
    )
    with pytest.raises(OutboundError):
        await _reader(hosts, allowed=["127.0.0.1"]).fetch_document(f"http://127.0.0.1:{port}/")


async def test_a_long_document_is_rejected(hosts: LoopbackServers) -> None:
    port = hosts.listen(
        lambda _: ok(b" " * (MAX_DOCUMENT_BYTES + 1), "Content-Type: application/json")
    )
    with pytest.raises(OutboundError):
        await _reader(hosts, allowed=["127.0.0.1"]).fetch_document(f"http://127.0.0.1:{port}/")


async def test_a_large_image_is_rejected(hosts: LoopbackServers, spool: DiskSpool) -> None:
    for head in (b"", f"Content-Length: {MAX_PICTURE + 1}\r\n".encode()):
        answer = (
            b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"
            + head
            + b"\r\n"
            + b"y" * (MAX_PICTURE + 1)
        )
        with pytest.raises(OutboundError):
            await _read(hosts, spool, answer)


async def test_only_the_headers_of_other_content_types_are_read(
    hosts: LoopbackServers, spool: DiskSpool
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 99999999999\r\n\r\n"
    port = hosts.listen(lambda _: head + b"y")
    found = await _reader(hosts, allowed=["127.0.0.1"]).fetch(f"http://127.0.0.1:{port}/", spool)
    assert (found.type, found.page, found.is_image) == ("video/mp4", None, False)


async def test_a_redirect_loop_ends(hosts: LoopbackServers, spool: DiskSpool) -> None:
    redirect = b"HTTP/1.1 301 Moved\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(OutboundError, match="too often"):
        await _read(hosts, spool, redirect)
    assert len(hosts.requests) == 6


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "gopher://127.0.0.1/", "http://[::1", "http://u:p@127.0.0.1/"],
)
async def test_redirects_to_invalid_urls_are_refused(
    hosts: LoopbackServers, spool: DiskSpool, location: str
) -> None:
    answer = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    with pytest.raises(OutboundError):
        await _read(hosts, spool, answer)
    assert len(hosts.requests) == 1
