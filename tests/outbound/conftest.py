"""Servers on loopback for these tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_coroutine
from tests.helpers.far_side import FarSide


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarSide]:
    """Servers on loopback, which end with the test."""
    side = FarSide(tmp_path)
    yield side
    run_coroutine(side.end(), 10)
