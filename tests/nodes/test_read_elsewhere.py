"""Unread counts at a node that does not know yet of a receipt written at another node."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.engine.database import PostgresConfig
from tests.helpers.calling_nodes import CallingNodes
from tests.helpers.server import User
from tests.helpers.syncing import Rooms, sync

rooms = Rooms()


@pytest.fixture
def nodes(tmp_path: Path, postgresql: PostgresConfig) -> Iterator[CallingNodes]:
    made = CallingNodes(tmp_path, postgresql)
    yield made
    made.close()


def unread(user: User, room_id: str) -> int:
    """Return the unread count of a room in an initial sync."""
    room = sync(user)["rooms"]["join"][room_id]
    return int(room["unread_notifications"]["notification_count"])


def test_a_receipt_that_moves_at_another_node_takes_nothing_back(nodes: CallingNodes) -> None:
    """The one before it is gone from the database, and the new one is of later than the answer.
    Without both all messages were unread."""
    alice, alice_there = nodes.here_and_there("alice")
    bob, _ = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob)
    said = [rooms.say(bob, room_id) for _ in range(5)]
    rooms.read(alice, room_id, said[-2])
    nodes.wait()
    nodes.end_first()  # nobody hears of what is written here
    rooms.read(alice, room_id, said[-1])

    assert unread(alice_there, room_id) <= 1

    nodes.wait(2)
    assert unread(alice_there, room_id) == 0
