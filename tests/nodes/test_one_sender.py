"""Of several nodes on one database one sends to other servers what any of them writes. Another
takes over when it is gone."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.protocol.ids import ServerName
from storage.engine.database import PostgresConfig
from storage.engine.interface import NodeCalls
from tests.conftest import run_coroutine
from tests.helpers.databases import open_inline
from tests.helpers.recording_wire import RecordingWire, pretend_member, settle
from tests.helpers.server import TestServer, User
from tests.servers.test_sending import DESTINATIONS, make_admin

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
            server = TestServer(
                of_node, self.databases[number], text, seed=number + 1, wire=self.wires[number]
            )
            assert server.app.other_nodes is not None
            server.app.other_nodes.start()
            server.app.federation_out.sender.start()
            self.servers.append(server)
        self.alice = self.servers[0].register("alice")
        self.room_id = str(
            self.alice.post(f"{V3}/createRoom", {"preset": "public_chat"}).json["room_id"]
        )

    def say(self, node: int, text: str) -> None:
        session = {
            "user_id": self.alice.user_id,
            "access_token": self.alice.token,
            "device_id": self.alice.device_id,
        }
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


async def test_the_first_sends_what_both_write_and_the_second_takes_over(
    nodes: SendingNodes,
) -> None:
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


async def test_an_operator_is_believed_at_either_node(nodes: SendingNodes) -> None:
    """Though the server has asked to be left alone: its own word would not do."""
    root = make_admin(nodes.servers[1])
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wires[0].busy[PEER] = 600
    nodes.wait(12)
    nodes.say(0, "one")
    nodes.wait(2)
    nodes.wires[0].busy.clear()
    nodes.servers[1].app.federation_out.sender.heard_from(ServerName(PEER))
    nodes.wait(24)
    assert nodes.wires[0].texts(PEER) == ["one"]
    assert root.post(f"{DESTINATIONS}/{PEER}/reset_connection", {}).status == 200
    nodes.wait(12)
    assert nodes.wires[0].texts(PEER) == ["one", "one"]


def hear(nodes: SendingNodes, number: int, seconds: int = 12) -> NodeCalls:
    """Let a node have a number among the nodes, as one has that hears the others: it is seen until
    what is returned is closed."""
    calls = nodes.databases[number].engine.connect_node()
    assert calls is not None
    nodes.servers[number].app.federation_out.sender._lease._lease._get_node = lambda: calls.node
    nodes.wait(seconds)
    return calls


def kill(nodes: SendingNodes, number: int, calls: NodeCalls) -> None:
    """The node sends nothing any more."""
    sender = nodes.servers[number].app.federation_out.sender
    sender._lease._round.stop()
    sender._lease.is_held = False
    sender._deliveries.stop()
    calls.close()
    other = nodes.servers[1 - number]
    while calls.node in other.run(other.app.database.get_nodes()):
        time.sleep(0.01)


async def test_one_that_was_killed_and_comes_back_goes_on_at_once(
    nodes: SendingNodes, tmp_path: Path
) -> None:
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wait()
    calls = hear(nodes, 0)
    await nodes.servers[1].app.federation_out.sender.stop()
    kill(nodes, 0, calls)
    nodes.say(0, "one")
    text = "database: {name: psycopg2, args: {}}\n"
    now = nodes.servers[0].clock.seconds()
    again = TestServer(
        tmp_path / "0", nodes.databases[0], text, seed=3, now=now, wire=nodes.wires[0]
    )
    again.app.federation_out.sender.start()
    settle(again)
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one"], []]


async def test_one_that_is_gone_is_replaced_before_its_lease_ends_and_one_that_lives_is_not(
    nodes: SendingNodes,
) -> None:
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wait()
    calls = hear(nodes, 0)
    nodes.wait(30)
    nodes.say(1, "one")
    nodes.wait(12)
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one"], []]
    kill(nodes, 0, calls)
    nodes.say(1, "two")
    nodes.wait(10)
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one"], []], (
        "it has a round to say under which number it goes on"
    )
    nodes.wait(10)
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one"], ["two"]]


async def test_one_that_is_killed_in_its_first_seconds_is_replaced_as_soon(
    nodes: SendingNodes,
) -> None:
    """It had no number yet when it took the lease."""
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    kill(nodes, 0, hear(nodes, 0, seconds=1))
    nodes.say(1, "one")
    nodes.wait(20)
    assert [wire.texts(PEER) for wire in nodes.wires] == [[], ["one"]]


async def test_one_that_lost_its_connection_goes_on_under_another_number(
    nodes: SendingNodes,
) -> None:
    await pretend_member(nodes.servers[0], nodes.room_id, f"@bob:{PEER}")
    nodes.wait()
    hear(nodes, 0).close()
    nodes.wait(9)
    calls = hear(nodes, 0)
    nodes.wait(20)
    nodes.say(0, "one")
    nodes.wait()
    assert [wire.texts(PEER) for wire in nodes.wires] == [["one"], []]
    calls.close()
