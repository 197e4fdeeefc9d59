"""Rooms of Alice, who has a pusher, and Bob."""

from federation.protocol.ids import RoomID
from tests.helpers.clocks import settle
from tests.helpers.federated_rooms import create_room
from tests.helpers.push_gateway import set_pusher
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"


def register_alice_with_pusher(server: TestServer) -> tuple[User, User]:
    """Alice, who has a pusher, and Bob."""
    alice, bob = server.register("alice"), server.register("bob")
    assert set_pusher(alice).status == 200
    settle(server)
    return alice, bob


def create_shared_room(alice: User, bob: User) -> RoomID:
    room_id = create_room(bob)
    assert alice.post(f"{V3}/join/{room_id}").status == 200
    return room_id


def invite_to_new_room(alice: User, bob: User) -> RoomID:
    room_id = create_room(bob, preset="private_chat")
    assert bob.post(f"{V3}/rooms/{room_id}/invite", {"user_id": alice.user_id}).status == 200
    return room_id


def send_private_receipt(user: User, room_id: str, event_id: str) -> None:
    assert user.post(f"{V3}/rooms/{room_id}/receipt/m.read.private/{event_id}", {}).status == 200


def set_account_data(user: User, type: str, content: object) -> None:
    assert user.put(f"{V3}/user/{user.user_id}/account_data/{type}", content).status == 200
