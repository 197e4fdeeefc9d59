"""What other servers' events are to our users: judged by push rules as our own are."""

from federation.protocol.ids import RoomID
from tests.helpers.federated import say, shared
from tests.helpers.network import Network
from tests.helpers.server import User

V3 = "/_matrix/client/v3"


def counts(user: User, room_id: RoomID) -> tuple[int, int]:
    unread = user.get(f"{V3}/sync").json["rooms"]["join"][room_id]["unread_notifications"]
    return unread["notification_count"], unread["highlight_count"]


def call(user: User, room_id: RoomID, txn: str, mentions: object) -> None:
    content = {"msgtype": "m.text", "body": "hey", "m.mentions": mentions}
    assert user.put(f"{V3}/rooms/{room_id}/send/m.room.message/call{txn}", content).status == 200


async def test_messages_from_another_server_are_judged_by_push_rules(network: Network) -> None:
    room = await shared(network)
    network.start_sending()
    network.settle()
    alice, bob, room_id = room.alice, room.bob, room.room_id
    say(alice, room_id, "hello")
    network.settle()
    assert counts(bob, room_id) == (1, 0)
    call(alice, room_id, "1", {"user_ids": [bob.user_id]})
    call(alice, room_id, "2", {"room": True})
    network.settle()
    assert counts(bob, room_id) == (3, 2)
    call(bob, room_id, "3", {"room": True})
    network.settle()
    assert counts(alice, room_id) == (1, 0), "Bob has not the power to call the room"
    bob.put(f"{V3}/pushrules/global/room/{room_id}", {"actions": []})
    say(alice, room_id, "no news to Bob")
    call(alice, room_id, "4", {"user_ids": [bob.user_id]})
    network.settle()
    assert counts(bob, room_id) == (1, 1)
    listed = bob.get(f"{V3}/notifications?only=highlight").json["notifications"]
    assert len(listed) == 3
