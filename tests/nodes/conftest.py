"""Fixtures for tests of several nodes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.engine.database import PostgresConfig
from tests.helpers.federated_processes import FederatedProcesses
from tests.helpers.node_pair import NodePair, PollingNodes


@pytest.fixture
def nodes(tmp_path: Path, postgresql: PostgresConfig) -> Iterator[NodePair]:
    """Two nodes that share everything except their memory."""
    made = NodePair(tmp_path, postgresql)
    yield made
    made.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[FederatedProcesses]:
    """Server processes that federate with each other."""
    processes = FederatedProcesses(tmp_path)
    yield processes
    processes.end()


@pytest.fixture
def polling_nodes(tmp_path: Path, postgresql: PostgresConfig) -> Iterator[PollingNodes]:
    made = PollingNodes(tmp_path, postgresql)
    yield made
    made.close()
