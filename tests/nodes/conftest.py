"""Fixtures for tests of several nodes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.engine.database import PostgresConfig
from tests.helpers.node_pair import NodePair


@pytest.fixture
def nodes(tmp_path: Path, postgresql: PostgresConfig) -> Iterator[NodePair]:
    """Two nodes that share everything except their memory."""
    made = NodePair(tmp_path, postgresql)
    yield made
    made.close()
