"""Looks up IP addresses (system resolver) and SRV records (DNS).

Addresses come from `getaddrinfo`, which runs in threads and reads the hosts file. SRV records come
from the name servers that the system is configured with.
"""

import socket
from collections.abc import Sequence
from typing import Protocol

import msgspec
from twisted.internet.base import ReactorBase
from twisted.names.client import Resolver
from twisted.names.dns import Record_SRV
from twisted.names.error import DNSNameError, DomainError, ResolverError

from federation.protocol.discovery import Service
from storage.engine.executors import Executor, run_in

SRV_SECONDS = (2, 4)
"""Time limits for the first and the second query for services."""
MAX_ADDRESSES = 20
"""Of one name."""
MAX_SERVICES = 20
MAX_NAME_CHARS, MAX_LABEL_CHARS = 253, 63


class NameNotFound(Exception):
    """The name does not exist, or the look-up failed."""


class SrvRecords(msgspec.Struct, frozen=True):
    """The SRV records of a name, if it has any, and their TTL in seconds."""

    records: tuple[Service, ...]
    seconds: float


class NameResolver(Protocol):
    """Looks up names."""

    async def lookup_addresses(self, host: str) -> Sequence[str]:
        """Return IPv4 and IPv6 addresses, best first. Raises NameNotFound."""
        ...

    async def lookup_services(self, name: str) -> SrvRecords:
        """Return the SRV records of `_service._tcp.host`. Raises NameNotFound if no name server
        answers."""
        ...


class SystemNameResolver:
    """Looks up names as this machine does."""

    def __init__(
        self,
        *,
        reactor: ReactorBase,
        threads: Executor,
        name_servers: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        """`threads` run `getaddrinfo`. `name_servers`: for services, instead of the system's."""
        self._threads = threads
        self._resolver = Resolver(
            resolv=None if name_servers else "/etc/resolv.conf",
            servers=name_servers,
            timeout=SRV_SECONDS,
            reactor=reactor,
        )

    async def lookup_addresses(self, host: str) -> Sequence[str]:
        _check(host)

        def ask() -> list[str]:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(address[0]) for *_, address in found))

        try:
            return (await run_in(self._threads, ask))[:MAX_ADDRESSES]
        except (OSError, UnicodeError) as error:
            raise NameNotFound(f"{host} has no address: {error}") from error

    async def lookup_services(self, name: str) -> SrvRecords:
        _check(name)
        try:
            answers, _authority, _additional = await self._resolver.lookupService(
                name, timeout=SRV_SECONDS
            )
        except DNSNameError:
            return SrvRecords((), 300)
        except (DomainError, ResolverError) as error:
            raise NameNotFound(f"no SRV records of {name}: {type(error).__name__}") from error
        found = [each for each in answers if isinstance(each.payload, Record_SRV)][:MAX_SERVICES]
        records = tuple(
            Service(
                each.payload.priority,
                each.payload.weight,
                each.payload.target.name.decode("ascii", "replace").rstrip("."),
                each.payload.port,
            )
            for each in found
        )
        return SrvRecords(records, min((each.ttl for each in found), default=300))


def _check(name: str) -> None:
    """Check that a text is a valid DNS name. Raises NameNotFound. spec: RFC 1035, section 2.3.4"""
    labels = name.removesuffix(".").split(".")
    if len(name) > MAX_NAME_CHARS or not all(0 < len(label) <= MAX_LABEL_CHARS for label in labels):
        raise NameNotFound(f"{name!a} is no valid DNS name")
