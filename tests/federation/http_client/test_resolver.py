"""DNS queries for services, to a real name server on loopback."""

from typing import cast

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.address import IPv4Address
from twisted.internet.base import ReactorBase
from twisted.internet.defer import fail, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorUDP
from twisted.names import dns, error
from twisted.names.server import DNSServerFactory

from federation.http_client.resolver import NameNotFound, SrvRecords, SystemNameResolver
from federation.protocol.discovery import Service
from storage.engine.executors import InlineExecutor

pytestmark = pytest.mark.reactor(60)


class Zone:
    """Answers a name server's questions."""

    def query(self, query: dns.Query, timeout: object = None) -> object:
        name = query.name.name.decode()
        if name == "_matrix-fed._tcp.south.example":
            records = [
                dns.RRHeader(
                    name,
                    dns.SRV,
                    ttl=77,
                    payload=dns.Record_SRV(10, 5, 8448, "Machine.south.example"),
                ),
                dns.RRHeader(
                    name, dns.SRV, ttl=99, payload=dns.Record_SRV(20, 0, 443, "other.example")
                ),
            ]
            return succeed((records, [], []))
        if name.endswith("broken.example"):
            return fail(OSError())
        return fail(error.DomainError())


async def asking(name: str) -> SrvRecords:
    reactor = cast(ReactorBase, installed_reactor)
    factory = DNSServerFactory(clients=[Zone()])
    factory.noisy = False
    port = cast(IReactorUDP, reactor).listenUDP(
        0, dns.DNSDatagramProtocol(factory), interface="127.0.0.1", maxPacketSize=8192
    )
    names = SystemNameResolver(
        reactor=reactor,
        threads=InlineExecutor(),
        name_servers=[("127.0.0.1", cast(IPv4Address, port.getHost()).port)],
    )
    try:
        return await names.lookup_services(name)
    finally:
        await maybeDeferred(port.stopListening)


async def test_srv_records_of_a_name_are_found() -> None:
    found = await asking("_matrix-fed._tcp.south.example")
    assert found.records == (
        Service(10, 5, "Machine.south.example", 8448),
        Service(20, 0, "other.example", 443),
    )
    assert found.seconds == 77


async def test_a_name_without_srv_records_has_none() -> None:
    assert (await asking("_matrix-fed._tcp.north.example")).records == ()


async def test_a_failure_of_the_name_server_is_an_error() -> None:
    with pytest.raises(NameNotFound):
        await asking("_matrix-fed._tcp.broken.example")


async def test_addresses_are_resolved_by_the_system() -> None:
    names = SystemNameResolver(
        reactor=cast(ReactorBase, installed_reactor),
        threads=InlineExecutor(),
        name_servers=[("127.0.0.1", 1)],
    )
    assert {"127.0.0.1", "::1"} & set(await names.lookup_addresses("localhost"))
    with pytest.raises(NameNotFound):
        await names.lookup_addresses("nowhere.invalid")


@pytest.mark.parametrize(
    "host", ["a" * 64 + ".example", "a..example", ".example", "", ".".join(["abcdefg"] * 40)]
)
async def test_invalid_names_are_not_looked_up(host: str) -> None:
    names = SystemNameResolver(
        reactor=cast(ReactorBase, installed_reactor),
        threads=InlineExecutor(),
        name_servers=[("127.0.0.1", 1)],
    )
    for ask in (names.lookup_addresses, names.lookup_services):
        with pytest.raises(NameNotFound):
            await ask(host)
