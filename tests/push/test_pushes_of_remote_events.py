"""Events of remote users are pushed like local ones, also an invite into a room that this server
is not in."""

from tests.helpers.network import Network
from tests.helpers.push_gateway import PushGateway, set_pusher
from tests.helpers.room_actions import V3, create, invite, join, ok

NORTH, SOUTH = "north.example", "south.example"


def test_a_remote_invite_and_remote_messages_are_pushed(network: Network) -> None:
    gateway = PushGateway()
    alice = network.add(NORTH).register("alice")
    south = network.add(SOUTH, web=gateway)
    bob = south.register("bob")
    south.app.pushers.start()
    network.start_sending()
    ok(set_pusher(bob))
    ok(alice.put(f"{V3}/profile/{alice.user_id}/displayname", {"displayname": "Alice"}))
    room_id = create(alice, name="tea")
    network.settle()

    invite(alice, room_id, bob)
    network.settle()
    [push] = gateway.taken
    assert push.notification["type"] == "m.room.member"
    assert push.notification["user_is_target"] is True
    assert push.notification["room_name"] == "tea"
    assert push.notification["sender_display_name"] == "Alice"
    assert push.notification["counts"] == {"unread": 1}

    join(bob, room_id)
    network.settle()
    gateway.taken.clear()
    sent = ok(
        alice.put(
            f"{V3}/rooms/{room_id}/send/m.room.message/1", {"msgtype": "m.text", "body": "hello"}
        )
    )
    network.settle()
    [push] = gateway.taken
    assert push.notification["event_id"] == sent["event_id"]
    assert push.notification["content"]["body"] == "hello"
    assert push.notification["room_name"] == "tea"
