"""The steps from a server name to hosts and ports, without any I/O.

`federation/peers/routes.py` does the I/O and takes these steps:

1. A name with an IP address or a port is used as it is (`route_by_name`).
2. Otherwise the well-known file is fetched, and parsed by `read_well_known`. If the file is valid,
   the name in it replaces the name of the server. If the new name has an IP address or a port, it
   is used as it is.
3. Otherwise the SRV records of the name are looked up (`service_names`, `route_by_services`).
4. If there are no SRV records, port 8448 of the host is used (`route_by_host`).

spec: server-server-api#resolving-server-names
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from federation.protocol.http_dates import read_http_date
from federation.protocol.ids import ServerName, host_of, is_ip_literal, is_server_name

PORT: Final = 8448
DEFAULT_SECONDS: Final = 24 * 3600.0
"""Lifetime of a well-known file whose HTTP headers set none."""
LONGEST_SECONDS: Final = 48 * 3600.0
SHORTEST_SECONDS: Final = 300.0
"""A file is cached for at least this time, whatever its headers say."""

_MAX_AGE = re.compile(r'(?:^|[\s,])max-age\s*=\s*"?([0-9]{1,10})"?\s*(?:$|,)', re.IGNORECASE)
_NO_CACHE = re.compile(r"(?:^|[\s,])(?:no-store|no-cache)\s*(?:$|,)", re.IGNORECASE)


class Service(msgspec.Struct, frozen=True):
    """An SRV record: RFC 2782."""

    priority: int
    weight: int
    host: str
    """Without the last dot. Empty if the record states that the service is not available."""
    port: int


class Hop(msgspec.Struct, frozen=True):
    """A host name, or an address without brackets, and a port."""

    host: str
    port: int


class Route(msgspec.Struct, frozen=True):
    """The hosts of a server, in the order to try them, with the names to use there."""

    host_header: str
    tls_name: str
    """The name that its certificate must be for: a host name, or an address without brackets."""
    hops: tuple[Hop, ...]
    """Hosts to try in this order. Empty if the server states that it does not federate."""


def route_by_name(name: ServerName) -> Route | None:
    """Return the route to a name with an address or a port (steps 1, 2, 3.1, 3.2), or None."""
    host = host_of(name)
    has_port = len(name) > len(host)
    if not has_port and not is_ip_literal(name):
        return None
    bare = host[1:-1] if host.startswith("[") else host
    return Route(name, bare, (Hop(bare, int(name[len(host) + 1 :]) if has_port else PORT),))


def service_names(host: str) -> tuple[str, str]:
    """Return the names of the SRV records to look up, in this order (steps 3.3, 3.4, 4, 5).

    The second is deprecated.
    """
    return f"_matrix-fed._tcp.{host}", f"_matrix._tcp.{host}"


def route_by_services(host: str, services: Sequence[Service], draws: Sequence[float]) -> Route:
    """The route by SRV records, at least one; `draws`: as many numbers in [0, 1), drawn by chance.

    The certificate is for `host`, and not for what an SRV record says.
    """
    ordered = order_services(services, draws)
    return Route(host, host, tuple(Hop(each.host, each.port) for each in ordered if each.host))


def route_by_host(host: str) -> Route:
    """The route where neither the name nor a record says more (steps 3.5, 6)."""
    return Route(host, host, (Hop(host, PORT),))


def order_services(services: Sequence[Service], draws: Sequence[float]) -> list[Service]:
    """By priority, and among equals by chance in proportion to their weights: RFC 2782, "The format
    of the SRV RR"."""
    left = sorted(services, key=lambda each: (each.priority, each.weight))
    ordered = []
    for draw in draws[: len(services)]:
        equals = [each for each in left if each.priority == left[0].priority]
        mark = draw * sum(each.weight for each in equals)
        for chosen in equals:
            mark -= chosen.weight
            if mark < 0:
                break
        ordered.append(chosen)
        left.remove(chosen)
    return ordered


def read_well_known(body: bytes) -> ServerName | None:
    """The server to which a well-known file delegates; None for a file that is not valid."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    name = value.get("m.server") if isinstance(value, dict) else None
    return (
        ServerName(name)
        if isinstance(name, str) and is_server_name(name) and _has_fair_port(name)
        else None
    )


def well_known_seconds(headers: Mapping[str, str], now: float) -> float:
    """Return the lifetime of a valid well-known file by its headers (names in lower case), within
    our bounds."""
    control = headers.get("cache-control", "")
    if _NO_CACHE.search(control):
        return SHORTEST_SECONDS
    age = _MAX_AGE.search(control)
    if age is not None:
        return _within_bounds(float(age[1]))
    expires = headers.get("expires")
    if expires is None:
        return DEFAULT_SECONDS
    date = read_http_date(expires)
    return SHORTEST_SECONDS if date is None else _within_bounds(date - now)


def _within_bounds(seconds: float) -> float:
    return min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS)


def _has_fair_port(name: str) -> bool:
    port = name[len(host_of(name)) + 1 :]
    return not port or int(port) > 0
