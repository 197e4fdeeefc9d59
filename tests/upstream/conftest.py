"""Servers that others wrote, each started once for the file that needs it."""

from collections.abc import Iterator

import pytest

from tests.helpers.ports import free_port
from tests.helpers.slapd import BINARY, NOT_INSTALLED, Slapd


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    if BINARY is None:
        pytest.skip(NOT_INSTALLED)
    server = Slapd(tmp_path_factory.mktemp("slapd"), free_port(), free_port())
    yield server
    server.close()
