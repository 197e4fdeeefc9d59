"""Checks which addresses may be contacted, in all notations."""

import pytest

from federation.http_client.address_policy import AddressPolicy
from homeserver.config.outgoing import PRIVATE_NETWORKS

POLICY = AddressPolicy(denied=PRIVATE_NETWORKS, allowed=["10.20.0.0/16", "fd00::5"])


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "10.20.1.1", "fd00::5", "::ffff:8.8.8.8"]
)
def test_public_addresses_may_be_contacted(address: str) -> None:
    assert POLICY.allows(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.1.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1%eth0",
        "fd00::6",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::127.0.0.1",
        "2002:7f00:1::1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "localhost",
        "127.1",
        "",
    ],
)
def test_internal_addresses_may_not_be_contacted(address: str) -> None:
    assert not POLICY.allows(address)
