"""Sliding sync: rooms that are sent for the first time are listed in `pos` itself: they need no
write, and are sent once."""

from pathlib import Path
from random import Random

import pytest

from homeserver.services.sliding_sync.pos import MAX_ADDED, added_in, added_to
from storage.engine.database import Database
from tests.helpers.room_actions import create, say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import UNSTABLE, SlidingClient, a_list, act, texts

pytestmark = pytest.mark.usefixtures("compared")

EXTENSIONS = {name: {"enabled": True} for name in ("account_data", "receipts", "typing")}


def looking(user: User, conn_id: str = "first") -> SlidingClient:
    """A client that looks at the two newest rooms."""
    return SlidingClient(
        user, conn_id, lists={"all": a_list([0, 1], limit=2)}, extensions=EXTENSIONS
    )


def received(client: SlidingClient) -> dict[str, bool]:
    """The rooms of an answer, and whether they are new to the client."""
    return {room_id: room.get("initial", False) for room_id, room in client.sync()["rooms"].items()}


def names(pos: str | None) -> int:
    """How many rooms stand in it."""
    assert pos is not None
    return pos.count(".")


def test_a_connection_continues_after_a_restart_and_on_another_node(
    tmp_path: Path, database: Database
) -> None:
    server = TestServer(tmp_path, database, seed=1)
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(alice, name=f"{at}") for at in range(5)]
    path = f"/_matrix/client/v3/user/{alice.user_id}/account_data/m.direct"
    assert alice.put(path, {bob.user_id: [rooms[1]]}).status == 200
    client = looking(alice)
    client.sync()
    for at in (0, 1):
        say(alice, rooms[at], f"{at}")
        client.sync()
    assert names(client.pos) == 2
    pos = client.pos
    for seed in (2, 3):
        client.user.server = TestServer(tmp_path, database, seed=seed)  # it remembers nothing
        client.pos = pos
        say(alice, rooms[0], f"again{seed}")
        answer = client.sync()["rooms"]
        assert {room_id: texts(room) for room_id, room in answer.items()} == {
            rooms[0]: [f"again{each}" for each in range(2, seed + 1)]
        }
    client.body["lists"]["all"]["ranges"] = [[0, 4]]
    assert received(client) == {rooms[2]: True}


def test_an_earlier_pos_gets_later_changes_again(server: TestServer) -> None:
    alice = server.register("alice")
    rooms = [create(alice) for _ in range(5)]
    client = looking(alice)
    client.sync()
    first = client.pos
    for room_id in rooms[:3]:
        say(alice, room_id, "hello")
        assert received(client) == {room_id: True}
    last, client.pos = client.pos, first  # none of the answers came
    assert received(client) == {rooms[1]: True, rooms[2]: True}
    client.pos = last
    assert received(client) == {}


def test_an_invented_pos_reveals_nothing(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(alice) for _ in range(4)]
    hers = create(bob, preset="public_chat", name="not hers")
    client = looking(alice)
    client.sync()
    assert client.pos is not None
    made_up = client.pos + "".join(f".{number:x}" for number in range(2, 2 * MAX_ADDED + 2, 2))
    client.pos = made_up
    assert received(client) == {}
    client.body["room_subscriptions"] = {hers: a_list(limit=5)}
    assert received(client) == {}
    act(alice, hers, "join")
    assert received(client) == {
        hers: True
    }  # the earlier entry does not count, since she was not in it
    client.body["lists"]["all"]["ranges"] = [[0, 9]]
    client.sync()
    say(alice, rooms[0], "hello")
    assert received(client) == {rooms[0]: False}
    for rest in (".", ".x", ".-1", "%201", ".1.", ".1" * (MAX_ADDED + 1), "." + "1" * 15):
        answer = alice.post(f"{UNSTABLE}?pos={made_up.partition('.')[0]}{rest}", client.body)
        assert (answer.status, answer.errcode) == (400, "M_UNKNOWN_POS"), rest


def test_a_pos_with_rooms_can_start_a_page_of_messages(server: TestServer) -> None:
    alice = server.register("alice")
    rooms = [create(alice) for _ in range(4)]
    client = looking(alice)
    client.sync()
    say(alice, rooms[0], "before")
    client.sync()
    assert names(client.pos) == 1
    say(alice, rooms[0], "after")
    path = f"/_matrix/client/v3/rooms/{rooms[0]}/messages?dir=b&limit=1&from={client.pos}"
    (event,) = alice.get(path).json["chunk"]
    assert event["content"]["body"] == "before"


def test_rooms_that_do_not_fit_into_the_pos_are_stored(server: TestServer) -> None:
    """An invite, which may be withdrawn; a room for which more is requested than for others; a room
    that was sent before."""
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(alice) for _ in range(4)]
    client = looking(alice)
    client.sync()
    theirs = create(bob, preset="public_chat")
    act(bob, theirs, "invite", user_id=alice.user_id)
    assert (received(client), names(client.pos)) == ({theirs: True}, 0)
    act(alice, theirs, "join")
    assert (received(client), names(client.pos)) == ({theirs: True}, 0)
    client.body["lists"]["all"]["timeline_limit"] = 7
    client.sync()
    say(alice, rooms[0], "hello")
    assert (received(client), names(client.pos)) == ({rooms[0]: True}, 1)
    client.body["room_subscriptions"] = {rooms[1]: a_list(limit=3)}
    assert (received(client), names(client.pos)) == ({rooms[1]: True}, 0)


def test_the_name_of_a_state_encodes_its_added_rooms() -> None:
    chance = Random(1)
    for _ in range(200):
        rooms = [
            (chance.randrange(1, 10**12), chance.random() < 0.3)
            for _ in range(chance.randrange(MAX_ADDED + 3))
        ]
        name = added_to("17", rooms)
        assert (name is None) == (len(rooms) > MAX_ADDED)
        if name is not None:
            assert added_in(name) == rooms
            assert added_to(name, [(5, True)] * (MAX_ADDED - len(rooms))) is not None
            assert added_to(name, [(5, True)] * (MAX_ADDED - len(rooms) + 1)) is None
