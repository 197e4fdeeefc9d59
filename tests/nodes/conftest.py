"""Fixtures for tests of several nodes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.engine.database import PostgresConfig
from tests.helpers.federated_processes import FederatedProcesses
from tests.helpers.node_network import NodeNetwork
from tests.helpers.node_pair import NodePair, PollingNodes
from tests.helpers.server_process import RunningServer, ServerFiles


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


@pytest.fixture
def processes(
    tmp_path: Path, postgresql: PostgresConfig
) -> Iterator[tuple[RunningServer, RunningServer]]:
    """Two server processes on one database."""
    files = ServerFiles(tmp_path / "node", postgresql)
    try:
        yield files.start(), files.start()
    finally:
        files.end()


@pytest.fixture
def node_network(
    tmp_path: Path, sqlite_template: Path, postgresql: PostgresConfig
) -> Iterator[NodeNetwork]:
    """A network whose southern server runs on two nodes."""
    made = NodeNetwork(tmp_path, sqlite_template, postgresql)
    yield made
    made.close()
