"""Finds the client address of a request.

The header `X-Forwarded-For` is trusted only if the listener is behind a proxy (`x_forwarded`). Our
proxy appends the address that connected to it, so the rightmost address is reliable. If that
address is in `SiteOptions.trusted_proxies`, the next address to the left is used, and so on.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

CACHED_ADDRESSES: Final = 1024
"""The number of cached addresses: behind a proxy, each request carries one."""
MAX_LENGTH: Final = 100
"""The longest address text, with zone, port and surrounding spaces."""
Networks = Sequence[IPv4Network | IPv6Network]


def normalise_address(address: str) -> str | None:
    """Return the canonical spelling of an address, or None for invalid text. IPv4-mapped IPv6
    becomes IPv4; zone and port are removed."""
    return _normalise_cached(address) if len(address) <= MAX_LENGTH else None


@lru_cache(CACHED_ADDRESSES)
def _normalise_cached(address: str) -> str | None:
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


def find_forwarded_address(headers: Sequence[str], trusted: Networks = ()) -> str | None:
    """Return the client address from the `X-Forwarded-For` headers, or None if the rightmost one
    is not a valid address."""
    found = None
    for text in reversed(",".join(headers).split(",")):
        address = normalise_address(text)
        if address is None:
            return found
        found = address
        if not trusted or not _is_in(address, trusted):
            return found
    return found


def _is_in(address: str, networks: Networks) -> bool:
    parsed = ip_address(address)
    return any(parsed in network for network in networks)
