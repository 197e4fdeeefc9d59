"""Large rooms are entered with a part of their state, and completed afterwards.

spec: server-server-api#put_matrixfederationv2send_joinroomideventid; MSC3706, MSC3902, MSC3943
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from federation.protocol.ids import RoomID, UserID
from federation.rooms.drafts import Draft
from federation.rooms.partial_rooms import LONGEST_WAIT
from tests.helpers.federated import Side
from tests.helpers.handshakes import NORTH, SOUTH, WEST, join_via, members
from tests.helpers.network import Network
from tests.helpers.server import TestServer, User
from tests.helpers.talk import V3, create, get_state, join, leave, membership, ok, refused, room_path, say

MEMBERS = 40
LAZY = quote('{"room":{"state":{"lazy_load_members":true}}}')


def member(number: int) -> UserID:
    return UserID(f"@user{number}:{NORTH}")


async def fill(server: TestServer, room_id: str, count: int = MEMBERS) -> None:
    """Let people join who have no accounts: nobody can tell."""
    drafts = [Draft("m.room.member", member(n), {"membership": "join"}, member(n)) for n in range(count)]
    for start in range(0, count, 50):
        await server.app.rooms.engine.send(RoomID(room_id), drafts[start : start + 50])


async def speak(server: TestServer, room_id: str, number: int, text: str) -> None:
    """One of those says something."""
    draft = Draft("m.room.message", member(number), {"msgtype": "m.text", "body": text})
    await server.app.rooms.engine.send(RoomID(room_id), [draft])


async def large_room(network: Network, **wish: Any) -> tuple[User, User, str]:
    """Alice with a large room in the north, and Bob in the south."""
    alice, bob = network.add(NORTH).register("alice"), network.add(SOUTH).register("bob")
    network.start_sending()
    room_id = create(alice, preset="public_chat", **wish)
    await fill(alice.server, room_id)
    return alice, bob, room_id


def lazily(user: User, since: str = "") -> Any:
    return ok(user.get(f"{V3}/sync?filter={LAZY}{since and '&since=' + since}"))


def is_whole(user: User, room_id: str) -> bool:
    snapshot = user.server.run(user.server.app.rooms.engine.get_snapshot(RoomID(room_id)))
    return snapshot.head.partial_join is None


async def same_state(one: User, other: User, room_id: str) -> None:
    mine, theirs = await Side(one.server).state(RoomID(room_id)), await Side(other.server).state(RoomID(room_id))
    assert mine == theirs
    heads = [await Side(user.server).room(RoomID(room_id)) for user in (one, other)]
    assert heads[0].head.joined_count == heads[1].head.joined_count


@pytest.mark.parametrize("version", ["6", "10", "11", "12"])
async def test_reading_and_writing_at_once_and_all_of_it_later(network: Network, version: str) -> None:
    alice, bob, room_id = await large_room(network, room_version=version, name="tea")

    ok(join_via(bob, room_id, NORTH))

    assert not is_whole(bob, room_id)
    assert get_state(bob, room_id, "m.room.name") == {"name": "tea"}
    say(bob, room_id, "salom")
    network.settle()
    await speak(alice.server, room_id, 7, "va alaykum")
    network.settle()
    room = lazily(bob)["rooms"]["join"][room_id]
    texts = [event["content"].get("body") for event in room["timeline"]["events"]]
    assert texts[-2:] == ["salom", "va alaykum"]
    told = {event["state_key"] for event in room["state"]["events"] if event["type"] == "m.room.member"}
    assert member(7) in told
    assert len(told) < MEMBERS
    assert [event["content"]["body"] for event in messages(alice, room_id)] == ["va alaykum", "salom"]

    network.start_completing()
    network.settle()

    assert is_whole(bob, room_id)
    assert len(members(bob, room_id)) == MEMBERS + 2
    await same_state(alice, bob, room_id)


def messages(user: User, room_id: str) -> list[Any]:
    chunk = ok(user.get(room_path(room_id, "messages", dir="b", limit=50)))["chunk"]
    return [event for event in chunk if event["type"] == "m.room.message"]
