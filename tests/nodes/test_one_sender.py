"""Of several processes on one database one sends to other servers, whoever writes; another takes over when it is gone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import PostgresConfig
from tests.conftest import run_coroutine
from tests.helpers.databases import open_inline
from tests.helpers.recording_wire import RecordingWire, pretend_member, settle
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"
PEER = "peer.example"


class SendingNodes:
    """Two nodes, each with a wire of its own, and a room that a user of another server is in."""

    def __init__(self, folder: Path, config: PostgresConfig) -> None:
        self.wires = [RecordingWire(), RecordingWire()]
        self.databases = [open_inline(config) for _ in range(2)]
        self.servers: list[TestServer] = []
        for number in range(2):
            of_node = folder / str(number)
            of_node.mkdir()
            text = "database: {name: psycopg2, args: {}}\n"
            server = TestServer(of_node, self.databases[number], text, seed=number + 1, wire=self.wires[number])
            assert server.app.other_nodes is not None
            server.app.other_nodes.start()
            server.app.federation_out.sender.start()
            self.servers.append(server)
        self.alice = self.servers[0].register("alice")
        self.room_id = str(self.alice.post(f"{V3}/createRoom", {"preset": "public_chat"}).json["room_id"])

    def say(self, node: int, text: str) -> None:
        session = {"user_id": self.alice.user_id, "access_token": self.alice.token, "device_id": self.alice.device_id}
        path = f"{V3}/rooms/{self.room_id}/send/m.room.message/{text}"
        answer = User(self.servers[node], session).put(path, {"msgtype": "m.text", "body": text})
        assert answer.status == 200, answer.body

    def wait(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            for server in self.servers:
                server.clock.advance(1)
                settle(server)

    def close(self) -> None:
        for server, database in zip(self.servers, self.databases, strict=True):
            assert server.app.other_nodes is not None
            server.app.other_nodes.stop()
            run_coroutine(database.close(), None)


@pytest.fixture
def nodes(tmp_path: Path, postgresql: PostgresConfig) -> Iterator[SendingNodes]:
    made = SendingNodes(tmp_path, postgresql)
    yield made
    made.close()


async def test_the_first_sends_what_both_write_and_the_second_takes_over(nodes: SendingNodes) -> None:
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wait()
    nodes.say(0, "one")
    nodes.say(1, "two")
    nodes.wait()
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one", "two"], []]

    await nodes.servers[0].app.federation_out.sender.stop()
    nodes.say(0, "three")
    nodes.wait(12)
    nodes.say(0, "four")
    nodes.wait()
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one", "two"], ["three", "four"]]


async def test_one_that_vanishes_is_replaced_when_its_lease_ends(nodes: SendingNodes) -> None:
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wait(12)
    vanished = nodes.servers.pop(0)
    assert vanished.app.other_nodes is not None
    vanished.app.other_nodes.stop()
    run_coroutine(nodes.databases.pop(0).close(), None)
    del nodes.wires[0]

    nodes.say(0, "one")
    nodes.wait(10)
    assert nodes.wires[0].texts(PEER) == []
    nodes.wait(30)
    assert nodes.wires[0].texts(PEER) == ["one"]
