"""Two servers were cut off from each other, and the other one's messages arrive late, at an earlier
place: a client that gets only the last of them finds all others behind it."""

from typing import Any
from urllib.parse import quote

import pytest

from federation.protocol.ids import EventID
from tests.helpers.network import Network
from tests.helpers.room_actions import V3, create, ok, room_path, say
from tests.helpers.server import User
from tests.helpers.sliding_client import SlidingClient, a_list

NORTH, SOUTH = "north.example", "south.example"
LAST = quote('{"room":{"timeline":{"limit":2}}}')


def late(network: Network) -> tuple[User, str, str, list[EventID], list[EventID]]:
    """Return Alice, the room, the token from before the servers were cut off, her messages since,
    and the messages that arrived then."""
    alice, dave = network.add(NORTH).register("alice"), network.add(SOUTH).register("dave")
    network.start_sending()
    room_id = create(alice, preset="public_chat")
    ok(dave.post(f"{V3}/join/{room_id}?via={NORTH}"))
    network.settle()
    since = str(ok(alice.get(f"{V3}/sync"))["next_batch"])
    network.cut(NORTH, SOUTH)
    ours = [say(alice, room_id, f"north {number}") for number in range(5)]
    theirs = [say(dave, room_id, f"south {number}") for number in range(3)]
    network.settle()
    network.mend(NORTH, SOUTH)
    for _ in range(60):
        network.clock.advance(60)
        network.settle()
    return alice, room_id, since, ours, theirs


def behind(user: User, room_id: str, timeline: list[Any], prev_batch: str) -> set[str]:
    """Return all messages that a client with this timeline has, reading back page by page."""
    found = {event["event_id"] for event in timeline}
    token: str | None = prev_batch
    while token is not None:
        page = ok(user.get(room_path(room_id, "messages", dir="b", limit=2, **{"from": token})))
        found |= {event["event_id"] for event in page["chunk"]}
        token = page.get("end")
    return found


@pytest.mark.parametrize("is_new", [False, True])
def test_sync_finds_all_late_messages(network: Network, is_new: bool) -> None:
    alice, room_id, since, ours, theirs = late(network)
    answer = ok(alice.get(f"{V3}/sync?filter={LAST}" + ("" if is_new else f"&since={since}")))
    timeline = answer["rooms"]["join"][room_id]["timeline"]
    assert [event["event_id"] for event in timeline["events"]] == theirs[1:]
    assert timeline["limited"]
    assert {*ours, *theirs} <= behind(alice, room_id, timeline["events"], timeline["prev_batch"])


def test_sliding_sync_finds_all_late_messages(network: Network) -> None:
    alice, room_id, _, ours, theirs = late(network)
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=2)})
    room = client.sync()["rooms"][room_id]
    assert [event["event_id"] for event in room["timeline"]] == theirs[1:]
    assert {*ours, *theirs} <= behind(alice, room_id, room["timeline"], room["prev_batch"])
