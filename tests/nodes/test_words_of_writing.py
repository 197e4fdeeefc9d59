"""What is written through one process is heard of at another as soon as that says so, not only when it asks."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from storage.database import PostgresConfig
from tests.helpers.calling_nodes import CallingNodes
from tests.helpers.syncing import Rooms, bodies, poll, sync

V3 = "/_matrix/client/v3"
rooms = Rooms()


@pytest.fixture
def nodes(tmp_path: Path, postgresql: PostgresConfig) -> Iterator[CallingNodes]:
    made = CallingNodes(tmp_path, postgresql)
    yield made
    made.close()


def test_a_message_wakes_who_waits_at_another_node_without_its_asking(nodes: CallingNodes) -> None:
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    nodes.wait()
    waiting = poll(bob, sync(bob, filter={"presence": {"types": []}})["next_batch"], {"presence": {"types": []}})
    rooms.say(alice, room_id, "salom")
    nodes.wait(0.15)
    assert waiting.done
    assert bodies(waiting.answer.json["rooms"]["join"][room_id]) == ["salom"]
    # a room that was made through one node can be read through the other
    other = rooms.create(alice)
    nodes.wait(0.15)
    assert bob_here.get(f"{V3}/rooms/{quote(other)}/messages?dir=b").status == 403
    assert nodes.there(alice).get(f"{V3}/rooms/{quote(other)}/messages?dir=b").status == 200


def test_many_writes_cost_few_calls(nodes: CallingNodes) -> None:
    alice, _ = nodes.here_and_there("alice")
    room_id = rooms.create(alice)
    nodes.wait()
    before = nodes.calls
    for number in range(50):
        rooms.say(alice, room_id, f"m{number}")
    nodes.wait(0.15)
    assert nodes.calls - before <= 2
