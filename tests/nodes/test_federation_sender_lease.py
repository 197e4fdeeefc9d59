"""Of several nodes on one database only one sends to other servers, for writes of all. Another one
takes over when it is gone."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.protocol.ids import ServerName
from storage.engine.database import PostgresConfig
from storage.engine.interface import NodeChannel
from tests.conftest import run_coroutine
from tests.helpers.clocks import settle
from tests.helpers.federation_sender import DESTINATIONS
from tests.helpers.leases import kill_part, set_node
from tests.helpers.node_pair import SeparateNodes
from tests.helpers.recording_wire import RecordingWire, pretend_member
from tests.helpers.server import TestServer, make_admin, move_user

V3 = "/_matrix/client/v3"
PEER = "peer.example"


class SendingNodes(SeparateNodes):
    """Two nodes with separate wires, and a room with a user of another server."""

    def __init__(self, folder: Path, config: PostgresConfig) -> None:
        self.wires = [RecordingWire(), RecordingWire()]
        super().__init__(folder, config, [{"wire": each} for each in self.wires])
        for server in self.servers:
            server.app.federation_sender.sender.start()
        self.alice = self.servers[0].register("alice")
        self.room_id = str(
            self.alice.post(f"{V3}/createRoom", {"preset": "public_chat"}).json["room_id"]
        )

    def say(self, node: int, text: str) -> None:
        path = f"{V3}/rooms/{self.room_id}/send/m.room.message/{text}"
        answer = move_user(self.servers[node], self.alice).put(
            path, {"msgtype": "m.text", "body": text}
        )
        assert answer.status == 200, answer.body

    def wait(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            for server in self.servers:
                server.clock.advance(1)
                settle(server)


@pytest.fixture
def nodes(tmp_path: Path, postgresql: PostgresConfig) -> Iterator[SendingNodes]:
    made = SendingNodes(tmp_path, postgresql)
    yield made
    made.close()


async def test_the_first_node_sends_for_both_and_the_second_takes_over(
    nodes: SendingNodes,
) -> None:
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wait()
    nodes.say(0, "one")
    nodes.say(1, "two")
    nodes.wait()
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one", "two"], []]

    await nodes.servers[0].app.federation_sender.sender.stop()
    nodes.say(0, "three")
    nodes.wait(12)
    nodes.say(0, "four")
    nodes.wait()
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one", "two"], ["three", "four"]]


async def test_a_node_that_vanishes_is_replaced_when_its_lease_ends(nodes: SendingNodes) -> None:
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wait(12)
    vanished = nodes.servers.pop(0)
    assert vanished.app.peer_nodes is not None
    vanished.app.peer_nodes.stop()
    run_coroutine(nodes.databases.pop(0).close(), None)
    del nodes.wires[0]

    nodes.say(0, "one")
    nodes.wait(10)
    assert nodes.wires[0].texts(PEER) == []
    nodes.wait(30)
    assert nodes.wires[0].texts(PEER) == ["one"]


async def test_an_operator_can_end_the_backoff_at_either_node(nodes: SendingNodes) -> None:
    """This holds even after a rate limit: then a request from that server does not end the
    backoff."""
    root = make_admin(nodes.servers[1])
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wires[0].busy[PEER] = 600
    nodes.wait(12)
    nodes.say(0, "one")
    nodes.wait(2)
    nodes.wires[0].busy.clear()
    nodes.servers[1].app.federation_sender.sender.record_activity(ServerName(PEER))
    nodes.wait(24)
    assert nodes.wires[0].texts(PEER) == ["one"]
    assert root.post(f"{DESTINATIONS}/{PEER}/reset_connection", {}).status == 200
    nodes.wait(12)
    assert nodes.wires[0].texts(PEER) == ["one", "one"]


def register(nodes: SendingNodes, number: int, seconds: int = 12) -> NodeChannel:
    """Register a node as one that is connected to the others. It counts as alive until the returned
    connection is closed."""
    calls = nodes.databases[number].engine.open_node_channel()
    assert calls is not None
    set_node(nodes.servers[number].app.federation_sender.sender, lambda: calls.node)
    nodes.wait(seconds)
    return calls


def kill(nodes: SendingNodes, number: int, calls: NodeChannel) -> None:
    """Kill a node: it sends nothing any more."""
    sender = nodes.servers[number].app.federation_sender.sender
    kill_part(sender)
    sender.on_lease_lost()
    calls.close()
    other = nodes.servers[1 - number]
    while calls.node in other.run(other.app.database.get_nodes()):
        time.sleep(0.01)


async def test_a_killed_node_that_restarts_continues_at_once(
    nodes: SendingNodes, tmp_path: Path
) -> None:
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wait()
    calls = register(nodes, 0)
    await nodes.servers[1].app.federation_sender.sender.stop()
    kill(nodes, 0, calls)
    nodes.say(0, "one")
    text = "database: {name: psycopg2, args: {}}\n"
    now = nodes.servers[0].clock.seconds()
    restarted = TestServer(
        tmp_path / "0", nodes.databases[0], text, seed=3, now=now, wire=nodes.wires[0]
    )
    restarted.app.federation_sender.sender.start()
    settle(restarted)
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one"], []]


async def test_only_a_dead_node_is_replaced_before_its_lease_ends(
    nodes: SendingNodes,
) -> None:
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wait()
    calls = register(nodes, 0)
    nodes.wait(30)
    nodes.say(1, "one")
    nodes.wait(12)
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one"], []]
    kill(nodes, 0, calls)
    nodes.say(1, "two")
    nodes.wait(10)
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one"], []], (
        "it has one round to announce its new number"
    )
    nodes.wait(10)
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one"], ["two"]]


async def test_a_node_killed_in_its_first_seconds_is_replaced_as_soon(
    nodes: SendingNodes,
) -> None:
    """It had no node number yet when it took the lease."""
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    kill(nodes, 0, register(nodes, 0, seconds=1))
    nodes.say(1, "one")
    nodes.wait(20)
    assert [wire.texts(PEER) for wire in nodes.wires] == [[], ["one"]]


async def test_a_node_that_lost_its_connection_continues_under_another_number(
    nodes: SendingNodes,
) -> None:
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wait()
    register(nodes, 0).close()
    nodes.wait(9)
    calls = register(nodes, 0)
    nodes.wait(20)
    nodes.say(0, "one")
    nodes.wait()
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one"], []]
    calls.close()
