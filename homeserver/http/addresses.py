"""Where a request comes from, as far as it can be believed.

A header says nothing unless the listener stands behind a proxy (`x_forwarded`). Then the rightmost
address of `X-Forwarded-For` is the one that our proxy saw; addresses of further proxies that we
trust are skipped from the right.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

REMEMBERED: Final = 1024
"""Addresses that came last: those who come by a proxy tell theirs with each request."""
LONGEST: Final = 100
"""With zone, port and spaces around."""
Networks = Sequence[IPv4Network | IPv6Network]


def normalise(address: str) -> str | None:
    """One spelling for an address: IPv4 in IPv6 is IPv4, no zone, no port. None for what is no
    address."""
    return _normalise(address) if len(address) <= LONGEST else None


@lru_cache(REMEMBERED)
def _normalise(address: str) -> str | None:
    text = address.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return str(parsed)


def forwarded_address(headers: Sequence[str], trusted: Networks = ()) -> str | None:
    """The client's address by its `X-Forwarded-For` headers; None if they name none that can be
    believed."""
    found = None
    for text in reversed(",".join(headers).split(",")):
        address = normalise(text)
        if address is None:
            return found
        found = address
        if not trusted or not _is_in(address, trusted):
            return found
    return found


def _is_in(address: str, networks: Networks) -> bool:
    parsed = ip_address(address)
    return any(parsed in network for network in networks)
