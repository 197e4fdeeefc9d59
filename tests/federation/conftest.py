"""Servers on loopback for these tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_coroutine
from tests.helpers.loopback_servers import LoopbackServers


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[LoopbackServers]:
    """Servers on loopback, which end with the test."""
    side = LoopbackServers(tmp_path)
    yield side
    run_coroutine(side.end(), 10)
