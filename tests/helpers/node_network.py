"""A network whose southern server runs on two nodes with one PostgreSQL database."""

from pathlib import Path

from storage.engine.database import Database, PostgresConfig
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.federated_rooms import SOUTH
from tests.helpers.network import Network, NetworkWire
from tests.helpers.node_pair import POSTGRES_CONFIG
from tests.helpers.server import TestServer


class NodeNetwork:
    """Add the northern server and then the southern one to `network`, before the other node is
    started. All further servers are on SQLite."""

    def __init__(self, folder: Path, sqlite_template: Path, postgresql: PostgresConfig) -> None:
        self._folder = folder
        self._template = sqlite_template
        self._postgresql = postgresql
        self._databases: list[Database] = []
        self._other: TestServer | None = None
        self.network = Network(folder, self._open_another)

    def _open_another(self) -> Database:
        is_south = len(self._databases) == 1
        config = self._postgresql if is_south else copy_sqlite(self._template, self._folder)
        self._databases.append(open_inline(config))
        return self._databases[-1]

    def start_other_node(self) -> TestServer:
        """Start the second node of the southern server."""
        folder = self._folder / "other"
        folder.mkdir()
        self._databases.append(open_inline(self._postgresql))
        self._other = TestServer(
            folder,
            self._databases[-1],
            POSTGRES_CONFIG,
            seed=99,
            server_name=SOUTH,
            clock=self.network.clock,
            wire=NetworkWire(self.network, SOUTH),
            key=self.network.servers[SOUTH].app.federation.identity.key,
        )
        assert self._other.app.peer_nodes is not None
        self._other.app.peer_nodes.start()
        return self._other

    def close(self) -> None:
        """Stop the second node and close all databases."""
        if self._other is not None and self._other.app.peer_nodes is not None:
            self._other.app.peer_nodes.stop()
        for database in self._databases:
            run_coroutine(database.close(), None)
