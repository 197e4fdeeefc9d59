"""Clients find events that the server got late by reading back.

A server that missed events and could not fetch them has a gap in a room; a client that gets a later
event learns of the gap. After two servers were cut off from each other, messages arrive late, at an
earlier place; a client that gets only the last of them finds all others behind it.
"""

from typing import Any
from urllib.parse import quote

import pytest

from federation.protocol.ids import EventID, RoomID, UserID
from tests.helpers.federated_rooms import (
    NORTH,
    SOUTH,
    Shared,
    Side,
    join_through_north,
    shared,
    two_users,
)
from tests.helpers.large_rooms import large_room, lazily
from tests.helpers.network import Network, forge_responses
from tests.helpers.remote_membership import join_via
from tests.helpers.room_actions import V3, create, join, leave, ok, room_path, say
from tests.helpers.server import User
from tests.helpers.sliding_client import SlidingClient, a_list

FEW = quote('{"room":{"timeline":{"limit":30}}}')
LAST = quote('{"room":{"timeline":{"limit":2}}}')


def all_messages(user: User, room_id: str, timeline: list[Any], prev_batch: str) -> set[str]:
    """Return all messages that a client with this timeline has, reading back page by page."""
    found = {event["event_id"] for event in timeline}
    token: str | None = prev_batch
    while token is not None:
        page = ok(user.get(room_path(room_id, "messages", dir="b", limit=2, **{"from": token})))
        found |= {event["event_id"] for event in page["chunk"]}
        token = page.get("end")
    return found


def follow(user: User, since: str | None = None) -> Any:
    return ok(user.get(f"{V3}/sync?filter={FEW}" + ("" if since is None else f"&since={since}")))


def there_again(network: Network) -> tuple[User, User, str, str, list[EventID], SlidingClient]:
    """Two people, a room, the second's token and client from before he left; what was said while no
    one of his server was in it; and he has come again."""
    alice, bob = two_users(network)
    network.start_sending()
    room_id = create(alice, preset="public_chat")
    join_through_north(network, bob, room_id)
    early = say(alice, room_id, "early")
    network.settle()
    client = SlidingClient(bob, lists={"all": a_list([0, 9], limit=20)})
    assert early in [event["event_id"] for event in client.sync()["rooms"][room_id]["timeline"]]
    leave(bob, room_id)
    network.settle()
    since = str(follow(bob)["next_batch"])
    missed = [say(alice, room_id, f"without you {number}") for number in range(3)]
    network.settle()
    join_through_north(network, bob, room_id)
    return alice, bob, room_id, since, missed, client


@pytest.mark.parametrize("is_new", [False, True])
def test_a_returning_user_finds_missed_messages_by_sync(network: Network, is_new: bool) -> None:
    alice, bob, room_id, since, missed, _ = there_again(network)
    answer = follow(bob, None if is_new else since)
    timeline = answer["rooms"]["join"][room_id]["timeline"]
    assert timeline["limited"]
    assert [event["type"] for event in timeline["events"]] == ["m.room.member"]
    assert {*missed} <= all_messages(bob, room_id, timeline["events"], timeline["prev_batch"])
    following = say(alice, room_id, "welcome")
    network.settle()
    timeline = follow(bob, answer["next_batch"])["rooms"]["join"][room_id]["timeline"]
    assert not timeline["limited"], "this follows upon what he has"
    assert [event["event_id"] for event in timeline["events"]] == [following]


@pytest.mark.parametrize("is_new", [False, True])
def test_a_returning_user_finds_missed_messages_by_sliding_sync(
    network: Network, is_new: bool
) -> None:
    alice, bob, room_id, _, missed, client = there_again(network)
    if is_new:
        client = SlidingClient(bob, "new", lists={"all": a_list([0, 9], limit=20)})
    room = client.sync()["rooms"][room_id]
    assert room["limited"]
    assert [event["type"] for event in room["timeline"]] == ["m.room.member"]
    assert {*missed} <= all_messages(bob, room_id, room["timeline"], room["prev_batch"])
    following = say(alice, room_id, "welcome")
    network.settle()
    room = client.sync()["rooms"][room_id]
    assert "limited" not in room
    assert [event["event_id"] for event in room["timeline"]] == [following]


async def bridged(network: Network) -> tuple[Shared, str, SlidingClient, list[str]]:
    """A room of which the south missed messages that nobody would give it as it asked: it goes on
    from the state after them."""
    room = await shared(network)
    since = str(follow(room.bob)["next_batch"])
    client = SlidingClient(room.bob, lists={"all": a_list([0, 9], limit=20)})
    client.sync()
    network.cut(NORTH, SOUTH)
    said = [say(room.alice, room.room_id, name) for name in ("one", "two", "three")]
    network.mend(NORTH, SOUTH)
    forge_responses(network, NORTH, "get_missing_events", lambda _: {"events": []})
    await room.north.push(SOUTH, [await room.pdu(said[-1])])
    network.interceptors.clear()
    return room, since, client, list(said)


@pytest.mark.parametrize("is_new", [False, True])
async def test_an_unfilled_gap_is_reported_by_sync(network: Network, is_new: bool) -> None:
    room, since, _, said = await bridged(network)
    answer = follow(room.bob, None if is_new else since)
    timeline = answer["rooms"]["join"][room.room_id]["timeline"]
    assert timeline["limited"]
    assert [event["event_id"] for event in timeline["events"]] == said[-1:]
    assert {*said} <= all_messages(
        room.bob, room.room_id, timeline["events"], timeline["prev_batch"]
    )


@pytest.mark.parametrize("is_new", [False, True])
async def test_an_unfilled_gap_is_reported_by_sliding_sync(network: Network, is_new: bool) -> None:
    room, _, client, said = await bridged(network)
    if is_new:
        client = SlidingClient(room.bob, "new", lists={"all": a_list([0, 9], limit=20)})
    entry = client.sync()["rooms"][room.room_id]
    assert entry["limited"]
    assert [event["event_id"] for event in entry["timeline"]] == said[-1:]
    assert {*said} <= all_messages(room.bob, room.room_id, entry["timeline"], entry["prev_batch"])


async def test_messages_sent_before_the_join_was_seen_leave_no_gap(network: Network) -> None:
    """It lacks what the join lacks, and nothing is missing between the two. In a room that was
    entered with a part of its state."""
    alice, bob, room_id = await large_room(network)
    north = Side(alice.server)
    meanwhile = [
        await north.build_next(
            RoomID(room_id), UserID(alice.user_id), "m.room.message", {"body": body}
        )
        for body in ("before I saw you", "nor then")
    ]
    ok(join_via(bob, room_id, NORTH))
    since = ""
    for event in meanwhile:
        await north.push(SOUTH, [event.pdu])
        answer = lazily(bob, since)
        timeline = answer["rooms"]["join"][room_id]["timeline"]
        assert timeline["limited"] == (since == ""), (
            "what was before the join is missing, and nothing else"
        )
        ids = [each["event_id"] for each in timeline["events"]]
        assert ids[-1:] == [event.event_id]
        assert len(ids) == (2 if since == "" else 1), "the join is told with what comes first"
        since = answer["next_batch"]


async def test_a_gap_before_a_hidden_event_is_reported(network: Network) -> None:
    """Carol has been banned meanwhile, and nobody here sees what she said: what follows upon that
    is what comes after the hole."""
    levels = {"users": {f"@alice:{NORTH}": 100, f"@bob:{SOUTH}": 100}}
    room = await shared(network, power_level_content_override=levels)
    carol = room.alice.server.register("carol")
    join(carol, room.room_id)
    await room.north.push(SOUTH, [event.pdu for event in await room.north.last(room.room_id)])
    ok(room.bob.post(room_path(room.room_id, "ban"), {"user_id": carol.user_id}))
    since = follow(room.bob)["next_batch"]
    said = [
        say(user, room.room_id, text)
        for text, user in (("a", room.alice), ("b", carol), ("c", room.alice))
    ]
    forge_responses(network, NORTH, "get_missing_events", lambda _: {"events": []})
    for event_id in said[1:]:
        await room.north.push(SOUTH, [await room.pdu(event_id)])
    network.interceptors.clear()
    timeline = follow(room.bob, since)["rooms"]["join"][room.room_id]["timeline"]
    assert [event["event_id"] for event in timeline["events"]] == said[2:]
    assert timeline["limited"]
    assert said[0] in all_messages(
        room.bob, room.room_id, timeline["events"], timeline["prev_batch"]
    )


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


@pytest.mark.parametrize("is_new", [False, True])
def test_sync_finds_all_late_messages(network: Network, is_new: bool) -> None:
    alice, room_id, since, ours, theirs = late(network)
    answer = ok(alice.get(f"{V3}/sync?filter={LAST}" + ("" if is_new else f"&since={since}")))
    timeline = answer["rooms"]["join"][room_id]["timeline"]
    assert [event["event_id"] for event in timeline["events"]] == theirs[1:]
    assert timeline["limited"]
    assert {*ours, *theirs} <= all_messages(
        alice, room_id, timeline["events"], timeline["prev_batch"]
    )


def test_sliding_sync_finds_all_late_messages(network: Network) -> None:
    alice, room_id, _, ours, theirs = late(network)
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=2)})
    room = client.sync()["rooms"][room_id]
    assert [event["event_id"] for event in room["timeline"]] == theirs[1:]
    assert {*ours, *theirs} <= all_messages(alice, room_id, room["timeline"], room["prev_batch"])
