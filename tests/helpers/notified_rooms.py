"""Alice, who has a pusher, Bob, and their rooms."""

from typing import Any

from federation.protocol.ids import RoomID
from tests.helpers.clocks import settle
from tests.helpers.federated_rooms import create_room
from tests.helpers.push_gateway import set_pusher
from tests.helpers.room_actions import invite, join, send_receipt
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"


def register_alice_with_pusher(server: TestServer) -> tuple[User, User]:
    """Register Alice, who has a pusher, and Bob."""
    alice, bob = server.register("alice"), server.register("bob")
    assert set_pusher(alice).status == 200
    settle(server)
    return alice, bob


def create_shared_room(alice: User, bob: User, **options: Any) -> RoomID:
    """Create a room of Bob's that Alice joins."""
    room_id = create_room(bob, **options)
    join(alice, room_id)
    return room_id


def invite_to_new_room(alice: User, bob: User) -> RoomID:
    """Create a private room of Bob's with an invite for Alice."""
    room_id = create_room(bob, preset="private_chat")
    invite(bob, room_id, alice)
    return room_id


def send_private_receipt(user: User, room_id: str, event_id: str) -> None:
    """Send a private read receipt."""
    send_receipt(user, room_id, event_id, "m.read.private")


def set_account_data(user: User, type: str, content: object) -> None:
    """Set global account data."""
    assert user.put(f"{V3}/user/{user.user_id}/account_data/{type}", content).status == 200
