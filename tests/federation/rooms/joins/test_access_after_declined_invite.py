"""A user who left a room with all local users, was invited to it again and declined, may still see
what they saw."""

from urllib.parse import quote

import pytest

from tests.helpers.federated_rooms import shared
from tests.helpers.network import Network
from tests.helpers.room_actions import V3, invite, join, leave, ok, room_path, say

WITH_LEFT = quote('{"room":{"include_leave":true}}')


@pytest.mark.parametrize("way", ["v3", "sliding"])
async def test_a_declined_invite_to_a_room_that_all_local_users_left_is_shown(
    network: Network, way: str
) -> None:
    room = await shared(network, "12")
    network.start_sending()
    carol = room.south.server.register("carol")
    join(carol, room.room_id)
    network.settle()
    since = ok(room.bob.get(f"{V3}/sync"))["next_batch"]
    ok(
        room.bob.post(
            "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", sliding(room.room_id)
        )
    )
    for user in (carol, room.bob):
        leave(user, room.room_id)
    network.settle()
    invite(room.alice, room.room_id, room.bob)
    network.settle()
    leave(room.bob, room.room_id)
    network.settle()
    if way == "v3":
        for query in (f"filter={WITH_LEFT}", f"filter={WITH_LEFT}&since={since}"):
            left = ok(room.bob.get(f"{V3}/sync?{query}"))["rooms"]["leave"][room.room_id]
            own = [
                event["content"]["membership"]
                for part in (left["state"]["events"], left["timeline"]["events"])
                for event in part
                if event.get("state_key") == room.bob.user_id
            ]
            assert own[-1] == "leave"
    else:
        path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
        assert room.bob.post(path, sliding(room.room_id)).status == 200


@pytest.mark.parametrize("is_declined", [False, True])
async def test_an_invited_former_member_still_reads_what_they_saw(
    network: Network, *, is_declined: bool
) -> None:
    """The event of that invite has no place in the room."""
    room = await shared(network, "12")
    network.start_sending()
    say(room.bob, room.room_id, "salom")
    network.settle()
    leave(room.bob, room.room_id)
    network.settle()
    say(room.alice, room.room_id, "not for Bob")
    invite(room.alice, room.room_id, room.bob)
    network.settle()
    if is_declined:
        leave(room.bob, room.room_id)
        network.settle()
    page = ok(room.bob.get(room_path(room.room_id, "messages", dir="b")))["chunk"]
    assert [
        event["content"].get("body") or event["content"]["membership"] for event in page[:2]
    ] == ["leave", "salom"]


def sliding(room_id: str) -> dict[str, object]:
    wanted = {"required_state": [["*", "*"]], "timeline_limit": 5}
    return {
        "lists": {"all": {"ranges": [[0, 20]], **wanted}},
        "room_subscriptions": {room_id: wanted},
    }
