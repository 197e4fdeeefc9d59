"""Servers that others wrote, each started once for the file that needs it."""

import socket
from collections.abc import Iterator

import pytest

from tests.helpers.slapd import BINARY, NOT_INSTALLED, Slapd


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at this moment."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    if BINARY is None:
        pytest.skip(NOT_INSTALLED)
    server = Slapd(tmp_path_factory.mktemp("slapd"), *free_ports(2))
    yield server
    server.close()
