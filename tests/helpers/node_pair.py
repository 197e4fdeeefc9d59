"""Two nodes on one PostgreSQL database, in one process, which receive each other's notes at
once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homeserver.cluster.node_messages import NodeMessages
from storage.engine.database import PostgresConfig
from tests.conftest import run_coroutine
from tests.helpers.clocks import settle
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.recording_wire import RecordingWire
from tests.helpers.server import TestServer, User, move_user

POSTGRES_CONFIG = "database: {name: psycopg2, args: {}}\n"
CONFIG = """database: {name: psycopg2, args: {}}
presence: {enabled: true}
rc_presence: {per_user: {per_second: 10000, burst_count: 10000}}
"""


class NodePair:
    """Two nodes that share everything except their memory."""

    def __init__(self, folder: Path, config: PostgresConfig) -> None:
        self.counters = [QueryCounter() for _ in range(2)]
        self.databases = [open_inline(config, counter) for counter in self.counters]
        self.wires = [RecordingWire(), RecordingWire()]
        self.servers: list[TestServer] = []
        self.calls = 0
        """The number of notes sent between the nodes."""
        self._folder = folder
        for number in range(2):
            (folder / str(number)).mkdir()
            self.servers.append(self._start(number))
        self._connect_both()

    def _start(self, number: int) -> TestServer:
        folder, database, wire = (
            self._folder / str(number),
            self.databases[number],
            self.wires[number],
        )
        server = TestServer(folder, database, CONFIG, seed=number + 1, wire=wire)
        assert server.app.peer_nodes is not None
        server.app.peer_nodes.start()
        server.app.federation_sender.sender.start()
        for part in (server.app.profiles, server.app.presence, server.app.room_engine):
            part.start()
        return server

    def _connect_both(self) -> None:
        for number in range(2):
            self._connect(number + 1, self._notes(number), self._notes(1 - number))

    def restart_second(self) -> None:
        """Replace the second node, which crashed, by a new process."""
        former = self.servers[1]
        assert former.app.peer_nodes is not None
        former.app.peer_nodes.stop()
        self._notes(1).connect(None)
        self.servers[1] = self._start(1)
        self.servers[1].clock.advance(former.clock.seconds() - self.servers[1].clock.seconds())
        self._connect_both()

    def _notes(self, number: int) -> NodeMessages:
        notes = self.servers[number].app.accounts.node_messages
        assert notes is not None
        return notes

    def _connect(self, node: int, notes: NodeMessages, other: NodeMessages) -> None:
        async def send(bodies: Sequence[str]) -> None:
            self.calls += len(bodies)
            for body in bodies:
                other.receive(node, body)

        notes.connect(send)

    def end_first(self) -> None:
        """Let the first node crash."""
        self._notes(0).connect(None)

    def here_and_there(self, name: str) -> tuple[User, User]:
        """Register a user and return the session at both nodes."""
        here = self.servers[0].register(name)
        return here, self.there(here)

    def here(self, user: User) -> User:
        """Return the same session at the first node."""
        return self._at(0, user)

    def there(self, user: User) -> User:
        """Return the same session at the second node."""
        return self._at(1, user)

    def _at(self, number: int, user: User) -> User:
        return move_user(self.servers[number], user)

    def wait(self, seconds: float = 1.0) -> None:
        """Advance the clock of both nodes."""
        while seconds > 0:
            for server in self.servers:
                server.clock.advance(min(seconds, 1.0))
            seconds -= 1.0
        for _ in range(3):
            for server in self.servers:
                settle(server)

    def close(self) -> None:
        """Stop both nodes."""
        for server, database in zip(self.servers, self.databases, strict=True):
            assert server.app.peer_nodes is not None
            server.app.peer_nodes.stop()
            run_coroutine(database.close(), None)


class PollingNodes:
    """Two nodes that share everything except their memory, and read notes of each other only by
    polling the database."""

    def __init__(self, folder: Path, config: PostgresConfig) -> None:
        self.databases = [open_inline(config) for _ in range(2)]
        self.first, self.second = (
            TestServer(folder, database, POSTGRES_CONFIG, seed=seed)
            for seed, database in enumerate(self.databases, 1)
        )
        for server in (self.first, self.second):
            assert server.app.peer_nodes is not None
            server.app.peer_nodes.start()

    def here_and_there(self, name: str) -> tuple[User, User]:
        """Register a user and return the session at both nodes."""
        here = self.first.register(name)
        return here, move_user(self.second, here)

    def wait(self) -> None:
        """Advance the clock by a second."""
        for server in (self.first, self.second):
            server.clock.advance(1.0)
            for _ in range(3):
                server.clock.advance(0)

    def close(self) -> None:
        """Stop both nodes."""
        for server, database in zip((self.first, self.second), self.databases, strict=True):
            assert server.app.peer_nodes is not None
            server.app.peer_nodes.stop()
            run_coroutine(database.close(), None)


class SeparateNodes:
    """Two nodes on one database, each with a folder of its own.

    `options`: further arguments of the `TestServer` of each node.
    """

    def __init__(
        self, folder: Path, config: PostgresConfig, options: Sequence[Mapping[str, Any]]
    ) -> None:
        self.databases = [open_inline(config) for _ in range(2)]
        self.servers: list[TestServer] = []
        for number in range(2):
            of_node = folder / str(number)
            of_node.mkdir()
            server = TestServer(
                of_node,
                self.databases[number],
                POSTGRES_CONFIG,
                seed=number + 1,
                **options[number],
            )
            assert server.app.peer_nodes is not None
            server.app.peer_nodes.start()
            self.servers.append(server)

    def close(self) -> None:
        """Stop both nodes."""
        for server, database in zip(self.servers, self.databases, strict=True):
            assert server.app.peer_nodes is not None
            server.app.peer_nodes.stop()
            run_coroutine(database.close(), None)
