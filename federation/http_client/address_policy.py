"""Decides to which IP addresses this server may connect.

Callers pass the very address that a socket is opened to, never a name. So DNS rebinding cannot
evade the policy. If an IPv6 address contains IPv4 addresses (mapped, compatible, 6to4, NAT64,
Teredo), these are checked too.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

_NAT64: Final = IPv6Network("64:ff9b::/96")
_COMPATIBLE: Final = IPv6Network("::/96")


class AddressPolicy:
    """Networks to which the server never connects, and exceptions to them."""

    def __init__(self, *, denied: Iterable[str], allowed: Iterable[str] = ()) -> None:
        """Networks as in `10.0.0.0/8`, `fe80::/10`, or single addresses. Raises ValueError."""
        self._denied = [ip_network(each, strict=False) for each in denied]
        self._allowed = [ip_network(each, strict=False) for each in allowed]

    def allows(self, address: str) -> bool:
        """Return whether this IPv4 or IPv6 address may be contacted. Other texts may not."""
        try:
            found = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        addresses = [found, *_hidden_in(found)]
        return all(
            _is_in(each, self._allowed) or not _is_in(each, self._denied) for each in addresses
        )


def _is_in(
    address: IPv4Address | IPv6Address, networks: Iterable[IPv4Network | IPv6Network]
) -> bool:
    return any(address in network for network in networks)


def _hidden_in(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """Return the IPv4 addresses to which packets for this IPv6 address may be translated."""
    if isinstance(address, IPv4Address):
        return []
    hidden = [
        each
        for each in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ()))
        if each is not None
    ]
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        hidden.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return hidden
