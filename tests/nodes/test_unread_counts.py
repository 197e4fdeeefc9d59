"""Unread counts on a node that has not received another node's read receipt yet."""

from tests.helpers.node_pair import NodePair
from tests.helpers.server import User
from tests.helpers.sync_requests import Rooms, sync

rooms = Rooms()


def unread(user: User, room_id: str) -> int:
    """Return the unread count in an initial `/sync`."""
    room = sync(user)["rooms"]["join"][room_id]
    return int(room["unread_notifications"]["notification_count"])


def test_a_receipt_moved_on_another_node_does_not_reset_the_count(nodes: NodePair) -> None:
    """The old receipt is no longer in the database, and the new one is later than the response.
    Without either, all messages would be unread."""
    alice, alice_there = nodes.here_and_there("alice")
    bob, _ = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob)
    said = [rooms.say(bob, room_id) for _ in range(5)]
    rooms.read(alice, room_id, said[-2])
    nodes.wait()
    nodes.end_first()  # the second node gets no notes of these writes
    rooms.read(alice, room_id, said[-1])

    assert unread(alice_there, room_id) <= 1

    nodes.wait(2)
    assert unread(alice_there, room_id) == 0
