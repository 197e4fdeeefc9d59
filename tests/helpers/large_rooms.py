"""Rooms with so many people that other servers enter them in part."""

from typing import Any
from urllib.parse import quote

from federation.protocol.ids import RoomID, UserID
from federation.rooms.drafts import Draft
from federation.rooms.join_answers import FEW_MEMBERS
from tests.helpers.federated import Side
from tests.helpers.handshakes import NORTH, SOUTH
from tests.helpers.network import Network
from tests.helpers.server import TestServer, User
from tests.helpers.talk import V3, create, ok, room_path

MEMBERS = FEW_MEMBERS + 20
LAZY = quote('{"room":{"state":{"lazy_load_members":true}}}')


POWERS = {f"@alice:{NORTH}": 100, f"@bob:{SOUTH}": 60}


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


def complete(network: Network) -> None:
    network.start_completing()
    network.settle()


def messages(user: User, room_id: str) -> list[Any]:
    chunk = ok(user.get(room_path(room_id, "messages", dir="b", limit=50)))["chunk"]
    return [event for event in chunk if event["type"] == "m.room.message"]
