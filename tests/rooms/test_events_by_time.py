"""The event nearest to a time. spec:
client-server-api#get_matrixclientv1roomsroomidtimestamp_to_event"""

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from storage.engine.database import Database
from tests.helpers.federated_rooms import two_users
from tests.helpers.http import Answer
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, join_via
from tests.helpers.room_actions import (
    create,
    join,
    leave,
    membership,
    ok,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import START, TestServer, User

NOW = int(START * 1000)


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database)


def ask(user: User, room: str, **query: object) -> Answer:
    return user.get(f"/_matrix/client/v1/rooms/{quote(room)}/timestamp_to_event?{urlencode(query)}")


def nearest(user: User, room: str, ts: int, dir: str) -> Any:
    return ok(ask(user, room, ts=ts, dir=dir))


def say_at(user: User, room: str, seconds: int) -> str:
    """Send a message this many seconds from now."""
    user.server.clock.advance(seconds)
    return say(user, room, "x")


def test_the_nearest_events_before_and_after_a_time_are_found(alice: User) -> None:
    room = create(alice)
    first, second = say_at(alice, room, 100), say_at(alice, room, 100)
    at_first, at_second = NOW + 100_000, NOW + 200_000
    assert nearest(alice, room, at_first + 1, "f") == {
        "event_id": second,
        "origin_server_ts": at_second,
    }
    assert nearest(alice, room, at_second - 1, "b") == {
        "event_id": first,
        "origin_server_ts": at_first,
    }
    assert nearest(alice, room, at_first, "f")["event_id"] == first
    assert nearest(alice, room, at_first, "b")["event_id"] == first
    assert nearest(alice, room, 0, "f")["origin_server_ts"] == NOW
    assert nearest(alice, room, 2**53 - 1, "b")["event_id"] == second
    for ts, dir in ((at_second + 1, "f"), (NOW - 1, "b")):
        assert refused(ask(alice, room, ts=ts, dir=dir)) == (404, "M_NOT_FOUND")


def test_events_with_the_same_timestamp_are_found_in_order(alice: User) -> None:
    room = create(alice)
    alice.server.clock.advance(100)
    said = [say(alice, room, str(number)) for number in range(3)]
    assert nearest(alice, room, NOW + 1, "f")["event_id"] == said[0]
    assert nearest(alice, room, NOW + 200_000, "b")["event_id"] == said[2]


def test_only_visible_events_are_found(alice: User, bob: User) -> None:
    room = create(alice, preset="public_chat")
    set_state(alice, room, "m.room.history_visibility", {"history_visibility": "joined"})
    alice.server.clock.advance(1)
    for _ in range(250):
        say(alice, room, "hidden")
    alice.server.clock.advance(99)
    join(bob, room)
    seen = say_at(alice, room, 100)
    assert nearest(bob, room, NOW + 1, "f")["origin_server_ts"] == NOW + 100_000
    assert nearest(bob, room, NOW + 100_001, "f")["event_id"] == seen
    assert nearest(bob, room, NOW + 99_999, "b")["origin_server_ts"] == NOW
    alice.server.clock.advance(100)
    leave(bob, room)
    say_at(alice, room, 100)
    assert nearest(bob, room, NOW + 900_000, "b")["origin_server_ts"] == NOW + 300_000
    assert refused(ask(bob, room, ts=NOW + 300_001, dir="f")) == (404, "M_NOT_FOUND")


def test_non_members_are_refused(alice: User, bob: User) -> None:
    room = create(alice, preset="public_chat")
    assert refused(ask(bob, room, ts=NOW, dir="b")) == (403, "M_FORBIDDEN")
    assert refused(ask(bob, "!none:example.org", ts=NOW, dir="b")) == (403, "M_FORBIDDEN")
    set_state(alice, room, "m.room.history_visibility", {"history_visibility": "world_readable"})
    last = say(alice, room, "for all")
    assert nearest(bob, room, NOW, "b")["event_id"] == last
    ok(membership(alice, room, "ban", bob))
    assert nearest(bob, room, NOW, "b")["event_id"] != last


@pytest.mark.parametrize(
    ("query", "errcode"),
    [
        ({"ts": 1}, "M_MISSING_PARAM"),
        ({"dir": "f"}, "M_MISSING_PARAM"),
        ({"ts": 1, "dir": "x"}, "M_INVALID_PARAM"),
        ({"ts": "now", "dir": "f"}, "M_INVALID_PARAM"),
        ({"ts": -1, "dir": "f"}, "M_INVALID_PARAM"),
        ({"ts": 2**53, "dir": "f"}, "M_INVALID_PARAM"),
    ],
)
def test_invalid_requests_are_refused(alice: User, query: dict[str, object], errcode: str) -> None:
    assert refused(ask(alice, create(alice), **query)) == (400, errcode)


def test_the_unstable_path_works(alice: User) -> None:
    room = create(alice)
    path = (
        f"/_matrix/client/unstable/org.matrix.msc3030/rooms/{quote(room)}/timestamp_to_event"
        f"?ts={NOW}&dir=b"
    )
    assert ok(alice.get(path)) == nearest(alice, room, NOW, "b")


def test_an_event_before_the_own_join_is_found_on_another_server(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    start = int(network.clock.seconds() * 1000)
    for number in range(5):
        network.clock.advance(60)
        say(alice, room_id, f"{number}")
    ok(join_via(bob, room_id, NORTH))

    def at(minutes: float, direction: str) -> str:
        found = nearest(bob, room_id, start + int(minutes * 60_000), direction)
        return str(ok(bob.get(room_path(room_id, "event", found["event_id"])))["content"]["body"])

    assert at(1.5, "f") == "1"
    assert at(2.5, "b") == "1"
    assert at(3, "f") == "2"
    network.cut(NORTH, SOUTH)
    assert nearest(bob, room_id, start + 9 * 60_000, "b")["event_id"]
