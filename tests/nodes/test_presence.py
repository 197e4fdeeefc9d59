"""Presence is the same on all processes of one database, whichever of them users sync with."""

from typing import Any

import pytest

from federation.protocol.ids import ServerName, UserID
from homeserver.services.presence.presence import MESSAGE_LIFETIME
from homeserver.services.presence.remote_users import PresenceUpdate
from tests.helpers.node_pair import NodePair
from tests.helpers.presence import get_presence, set_presence
from tests.helpers.recording_wire import pretend_member
from tests.helpers.server import User
from tests.helpers.sync_requests import Rooms, poll, sync

V3 = "/_matrix/client/v3"
PEER = "peer.example"
rooms = Rooms()


@pytest.fixture
def alice(nodes: NodePair) -> tuple[User, User]:
    return nodes.here_and_there("alice")


@pytest.fixture
def bob(nodes: NodePair, alice: tuple[User, User]) -> tuple[User, User]:
    bob = nodes.here_and_there("bob")
    rooms.create(alice[0], bob[0])
    nodes.wait()
    return bob


def shown(answer: Any) -> dict[str, str]:
    return {
        event["sender"]: event["content"]["presence"]
        for event in answer.get("presence", {}).get("events", [])
    }


def test_a_user_who_comes_and_goes_on_one_node_is_seen_on_the_other(
    nodes: NodePair, alice: tuple[User, User], bob: tuple[User, User]
) -> None:
    waiting = poll(bob[1], sync(bob[1])["next_batch"])
    sync(alice[0])
    nodes.wait(1)
    assert waiting.done
    assert shown(waiting.answer.json) == {alice[0].user_id: "online", bob[0].user_id: "online"}
    assert get_presence(bob[1], alice[0])["presence"] == "online"
    since = waiting.answer.json["next_batch"]
    nodes.wait(32)
    assert shown(sync(bob[1], since))[alice[0].user_id] == "offline"
    assert get_presence(bob[1], alice[0])["presence"] == "offline"


def test_a_syncing_user_stays_present_and_goes_with_a_dead_node(
    nodes: NodePair, alice: tuple[User, User], bob: tuple[User, User]
) -> None:
    for _ in range(8):
        waiting = alice[0].start(
            "GET", f"{V3}/sync?since={sync(alice[0])['next_batch']}&timeout=20000"
        )
        nodes.wait(20)
        assert waiting.done
        assert get_presence(bob[1], alice[0])["presence"] == "online"
    nodes.end_first()
    nodes.wait(MESSAGE_LIFETIME + 2)
    assert get_presence(bob[1], alice[0])["presence"] == "offline"


def test_activity_on_another_node_prevents_idleness(
    nodes: NodePair, alice: tuple[User, User], bob: tuple[User, User]
) -> None:
    for _ in range(18):
        waiting = alice[0].start(
            "GET", f"{V3}/sync?since={sync(alice[0])['next_batch']}&timeout=20000"
        )
        room_id = next(iter(sync(bob[0])["rooms"]["join"]))
        rooms.read(alice[1], room_id, rooms.say(alice[1], room_id))
        nodes.wait(20)
        assert waiting.done
    assert [get_presence(user, alice[0])["presence"] for user in bob] == ["online", "online"]


def test_a_state_and_a_status_hold_on_all_nodes(
    nodes: NodePair, alice: tuple[User, User], bob: tuple[User, User]
) -> None:
    for user in alice:
        sync(user)
    nodes.wait(1)
    assert [get_presence(user, alice[0])["presence"] for user in bob] == ["online", "online"]
    set_presence(alice[1], "unavailable", status_msg="at lunch")
    nodes.wait(1)
    for user in bob:
        found = get_presence(user, alice[0])
        assert (found["presence"], found["status_msg"]) == ("unavailable", "at lunch")
    set_presence(alice[0], "online")
    nodes.wait(1)
    for user in bob:
        found = get_presence(user, alice[0])
        assert (found["presence"], found.get("status_msg")) == ("online", None)


async def test_the_sending_node_notifies_other_servers(
    nodes: NodePair, alice: tuple[User, User], bob: tuple[User, User]
) -> None:
    room_id = next(iter(sync(bob[0])["rooms"]["join"]))
    await pretend_member(nodes.servers[0], room_id, f"@eve:{PEER}")
    nodes.wait()
    sync(alice[1])
    nodes.wait(2)
    received = [
        (each["user_id"], each["presence"])
        for wire in nodes.wires
        for _, body in wire.transactions(PEER)
        for edu in body.get("edus", ())
        if edu["edu_type"] == "m.presence"
        for each in edu["content"]["push"]
    ]
    assert (alice[0].user_id, "online") in received


async def test_remote_presence_on_one_node_reaches_the_other(
    nodes: NodePair, bob: tuple[User, User]
) -> None:
    room_id = next(iter(sync(bob[0])["rooms"]["join"]))
    eve = UserID(f"@eve:{PEER}")
    await pretend_member(nodes.servers[0], room_id, eve)
    nodes.wait()
    update = PresenceUpdate(eve, "online", 0, currently_active=True, status_msg="here")
    nodes.servers[0].app.presence.presence.receive(ServerName(PEER), [update])
    nodes.wait(1)
    for user in bob:
        assert shown(sync(user))[eve] == "online"


def test_a_client_that_moves_between_nodes_can_wait(
    nodes: NodePair, alice: tuple[User, User], bob: tuple[User, User]
) -> None:
    sync(alice[0])
    nodes.servers[1].clock.advance(0.5)
    sync(alice[1])
    since = sync(bob[0])["next_batch"]
    ended_at_once = []
    for turn in range(8):
        nodes.wait(0.1)
        waiting = poll(bob[1 - turn % 2], since, timeout=200)
        ended_at_once.append(waiting.done)
        nodes.wait(0.2)
        since = waiting.answer.json["next_batch"]
    assert ended_at_once[3:] == [False] * 5
