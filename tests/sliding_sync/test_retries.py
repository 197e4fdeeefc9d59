"""Sliding sync: the response to a request that its client cancelled unnoticed takes nothing from
the next response."""

import pytest

from storage.sync.sliding_connections import MAX_CONNECTION_STATES, SlidingConnectionKey
from tests.helpers.http import Pending
from tests.helpers.room_actions import create, say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list, act, state_of

pytestmark = pytest.mark.usefixtures("compared")


def create_rooms(server: TestServer) -> tuple[User, User, list[str]]:
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(alice, preset="public_chat") for _ in range(4)]
    for room_id in rooms:
        act(bob, room_id, "join")
    return alice, bob, rooms


def one_that_is_stored(user: User, rooms: list[str]) -> SlidingClient:
    """A client for which each new room is requested differently from the last one, so that its
    state is stored each time."""
    client = SlidingClient(user, lists={"all": a_list([0, 1])})
    client.sync()
    client.body["room_subscriptions"] = {rooms[1]: a_list(limit=9)}
    client.sync()
    del client.body["room_subscriptions"]
    client.sync()
    return client


def woken(server: TestServer, *pending: Pending) -> list[str]:
    """The `pos` of each of the answers."""
    for _ in range(5):
        server.clock.advance(0.2)
    return [each.answer.json["pos"] for each in pending]


def go_on(client: SlidingClient, pos: str) -> None:
    client.pos = pos
    client.sync()


@pytest.mark.parametrize("first", [0, 1])
def test_a_retry_during_the_first_attempt_loses_nothing(server: TestServer, first: int) -> None:
    alice, bob, rooms = create_rooms(server)
    client = one_that_is_stored(bob, rooms)
    given_up, retry = client.wait(), client.wait()
    say(alice, rooms[0], "hello")  # another room leaves the window: a state for each answer
    ends = woken(server, given_up, retry)
    assert ends[0] != ends[1]
    go_on(client, ends[first])  # whichever of the two it was that came
    say(alice, rooms[1], "again")
    client.sync()
    client.sync()


def test_a_late_response_does_not_disturb_a_client_that_continued(server: TestServer) -> None:
    alice, bob, rooms = create_rooms(server)
    client = SlidingClient(bob, lists={"all": a_list([0, 1])})
    client.sync()
    given_up = client.wait()
    client.body["lists"]["all"]["timeline_limit"] = 5
    client.sync()
    going_on = client.wait()
    say(alice, rooms[0], "hello")
    _, end = woken(server, given_up, going_on)
    go_on(client, end)
    client.sync()


def test_a_late_response_to_a_waiting_client_loses_nothing(server: TestServer) -> None:
    alice, bob, rooms = create_rooms(server)
    client = SlidingClient(bob, lists={"all": a_list([0, 1])})
    client.sync()
    given_up = client.wait()
    client.body["lists"]["all"]["timeline_limit"] = 5
    client.sync()
    say(alice, rooms[0], "hello")
    woken(server, given_up)
    client.sync()


def test_the_cached_states_of_retries_are_bounded(server: TestServer) -> None:
    alice, bob, rooms = create_rooms(server)
    client = one_that_is_stored(bob, rooms)
    attempts = [client.wait() for _ in range(MAX_CONNECTION_STATES + 3)]
    say(alice, rooms[0], "hello")
    ends = woken(server, *attempts)
    for pos in sorted(ends, key=lambda pos: int(pos.split("_")[-1]))[-MAX_CONNECTION_STATES + 1 :]:
        answer = bob.post(f"{client.path().partition('?')[0]}?pos={pos}", client.body)
        assert answer.status == 200, answer.body
    assert bob.device_id is not None
    key = SlidingConnectionKey(bob.user_id, bob.device_id, client.body["conn_id"])
    # private: states that are not in memory are read from the database
    known = server.app.sync.sliding.connections._known.get(key)
    assert known is not None
    assert len(known[0].states) <= MAX_CONNECTION_STATES


def test_a_client_that_returns_to_an_old_pos_gets_members_again(
    server: TestServer,
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    say(bob, room_id, "one")
    say(alice, room_id, "two")
    client = SlidingClient(alice, lists={"all": a_list([0, 1], state=[["m.room.member", "$LAZY"]])})
    client.sync()
    stored = client.pos
    client.body["lists"]["all"]["timeline_limit"] = 2
    bobs = ("m.room.member", bob.user_id)
    for _ in range(2):  # the app is opened again before it had stored what it heard
        client.pos = stored
        assert bobs in state_of(client.sync()["rooms"][room_id])
        client.sync()


def test_typing_is_sent_again_after_a_lost_response(server: TestServer) -> None:
    """The client asks for another window, and gives that up, before anything has happened to
    anybody."""
    alice, bob, rooms = create_rooms(server)
    say(alice, rooms[1], "newest")
    client = SlidingClient(
        bob, lists={"all": a_list([0, 3])}, extensions={"typing": {"enabled": True}}
    )
    path = f"/_matrix/client/v3/rooms/{rooms[0]}/typing/{alice.user_id}"
    client.sync()
    assert alice.put(path, {"typing": True, "timeout": 20000}).status == 200
    assert rooms[0] in client.sync()["extensions"]["typing"]["rooms"]
    client.body["lists"]["all"]["ranges"] = [[0, 0]]
    client.sync()
    assert alice.put(path, {"typing": False}).status == 200
    client.sync()
    kept = client.pos
    client.body["lists"]["all"]["ranges"] = [[0, 3]]
    for _ in range(2):
        client.pos = kept
        received = client.sync()["extensions"]["typing"]["rooms"]
        assert received == {rooms[0]: {"type": "m.typing", "content": {"user_ids": []}}}
    assert client.sync()["extensions"]["typing"]["rooms"] == {}
