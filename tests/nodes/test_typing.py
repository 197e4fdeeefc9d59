"""Typing notifications are known on all processes of one database, whichever received them, and a
client may move between processes."""

import time
from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.node_pair import NodePair
from tests.helpers.recording_wire import pretend_member
from tests.helpers.server_process import RunningServer
from tests.helpers.sliding_client import UNSTABLE, SlidingClient, a_list
from tests.helpers.sync_requests import Json, Rooms, poll, sync

V3 = "/_matrix/client/v3"
PEER = "peer.example"
rooms = Rooms()
QUIET: Json = {"presence": {"types": []}}


def typing(answer: Any, room_id: str) -> Any:
    events = (
        answer.get("rooms", {})
        .get("join", {})
        .get(room_id, {"ephemeral": {"events": []}})["ephemeral"]["events"]
    )
    found = [event["content"]["user_ids"] for event in events if event["type"] == "m.typing"]
    return found[0] if found else None


def sliding_typing(answer: Any, room_id: str) -> Any:
    room = answer["extensions"].get("typing", {}).get("rooms", {}).get(room_id)
    return None if room is None else room["content"]["user_ids"]


def test_typing_on_one_node_is_sent_on_the_other_in_both_kinds_of_sync(
    nodes: NodePair,
) -> None:
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    nodes.wait()
    extensions = {"typing": {"enabled": True}}
    sliding = SlidingClient(bob, lists={"all": a_list([0, 9])}, extensions=extensions)
    sliding.sync()
    waiting, polling = sliding.wait(), poll(bob, sync(bob)["next_batch"])
    rooms.type(alice, room_id)
    nodes.wait(0.2)
    assert (waiting.done, polling.done) == (True, True)
    assert typing(polling.answer.json, room_id) == [alice.user_id]
    assert sliding_typing(waiting.answer.json, room_id) == [alice.user_id]
    since = polling.answer.json["next_batch"]
    rooms.type(alice, room_id, typing=False)
    nodes.wait(0.2)
    assert typing(sync(bob, since), room_id) == []


def test_renewed_typing_continues_and_expired_typing_ends_on_all_nodes(
    nodes: NodePair,
) -> None:
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    nodes.wait()
    for _ in range(3):
        rooms.type(alice, room_id)  # for ten seconds
        nodes.wait(8)
    assert typing(sync(bob), room_id) == [alice.user_id]
    nodes.wait(3)
    assert typing(sync(bob), room_id) is None


def test_a_user_who_is_kicked_on_one_node_stops_typing_on_all(nodes: NodePair) -> None:
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    nodes.wait()
    carol_here, carol = nodes.here_and_there("carol")
    rooms.join(carol_here, room_id)
    nodes.wait()
    rooms.type(carol, room_id)
    nodes.wait(0.2)
    since = sync(bob)["next_batch"]
    rooms.act(alice, room_id, "kick", carol)
    nodes.wait()
    assert typing(sync(bob, since), room_id) == []


@pytest.mark.parametrize("is_sliding", [False, True])
def test_a_client_that_moves_between_nodes_can_wait_for_new_typing(
    nodes: NodePair, *, is_sliding: bool
) -> None:
    """A load balancer may alternate between nodes. A long poll that ends at once each time would be
    a loop."""
    alice, alice_there = nodes.here_and_there("alice")
    bob_here, bob_there = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    nodes.wait()
    rooms.type(alice_there, room_id)
    nodes.servers[1].clock.advance(0.5)  # clocks always differ a little
    rooms.type(bob_there, room_id)
    rooms.type(alice, room_id, typing=False)
    nodes.wait(0.2)
    ended_at_once = []
    client = SlidingClient(
        bob_here, lists={"all": a_list([0, 9])}, extensions={"typing": {"enabled": True}}
    )
    since = client.sync()["pos"] if is_sliding else sync(bob_here)["next_batch"]
    for turn in range(8):
        nodes.wait(0.1)
        user = (bob_there, bob_here)[turn % 2]
        if is_sliding:
            pending = user.start("POST", f"{UNSTABLE}?pos={since}&timeout=200", client.body)
        else:
            pending = poll(user, since, timeout=200)
        ended_at_once.append(pending.done)
        nodes.wait(0.2)
        since = pending.answer.json["pos" if is_sliding else "next_batch"]
    assert ended_at_once[2:] == [False] * 6


async def test_typing_on_a_node_without_the_sender_reaches_other_servers(
    nodes: NodePair,
) -> None:
    alice, there = nodes.here_and_there("alice")
    room_id = rooms.create(alice)
    await pretend_member(nodes.servers[0], room_id, f"@eve:{PEER}")
    nodes.wait()
    rooms.type(there, room_id)
    nodes.wait(0.2)
    nodes.wait(0.2)
    received = [
        edu["content"]
        for wire in nodes.wires
        for _, body in wire.transactions(PEER)
        for edu in body.get("edus", ())
        if edu["edu_type"] == "m.typing"
    ]
    assert received == [{"room_id": room_id, "user_id": alice.user_id, "typing": True}]


def test_many_typing_users_cost_few_notes(nodes: NodePair) -> None:
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    ids = [rooms.create(alice, bob_here) for _ in range(5)]
    nodes.wait()
    before = nodes.calls
    for _ in range(4):
        for room_id in ids:
            rooms.type(alice, room_id)
    nodes.wait(0.2)
    answer = sync(bob)
    assert [typing(answer, room_id) for room_id in ids] == [[alice.user_id]] * 5
    assert nodes.calls - before <= 2


def test_a_process_notifies_another(processes: tuple[RunningServer, RunningServer]) -> None:
    here, there = processes
    alice, bob = here.register("alice"), there.register("bob")
    created = here.request("POST", f"{V3}/createRoom", {"preset": "public_chat"}, token=alice)
    room_id = created.json["room_id"]
    assert there.request("POST", f"{V3}/join/{quote(room_id)}", {}, token=bob).status == 200
    since = there.request("GET", f"{V3}/sync", token=bob).json["next_batch"]
    me = here.request("GET", f"{V3}/account/whoami", token=alice).json["user_id"]
    path = f"{V3}/rooms/{quote(room_id)}/typing/{quote(me)}"
    deadline = time.monotonic() + 20
    found = None
    while found != [me] and time.monotonic() < deadline:
        # repeated: a process receives notes from the second after its start
        assert here.request("PUT", path, {"typing": False}, token=alice).status == 200
        assert here.request("PUT", path, {"typing": True}, token=alice).status == 200
        answer = there.request("GET", f"{V3}/sync?since={since}&timeout=2000", token=bob).json
        since = answer["next_batch"]
        found = typing(answer, room_id)
    assert found == [me]


@pytest.mark.parametrize("is_said", [True, False])
def test_the_end_of_typing_reaches_a_client_that_changes_nodes_meanwhile(
    nodes: NodePair, *, is_said: bool
) -> None:
    """The client has a position of one node that is later than the change on the other, and was not
    known there."""
    alice, alice_there = nodes.here_and_there("alice")
    bob_here, bob_there = nodes.here_and_there("bob")
    room_id, other_id = rooms.create(alice, bob_here), rooms.create(alice, bob_here)
    nodes.wait()
    rooms.type(alice_there, room_id)
    nodes.wait(0.2)
    since = sync(bob_here, filter=QUIET)["next_batch"]
    nodes.servers[0].clock.advance(0.001)
    if is_said:
        rooms.type(alice_there, room_id, typing=False)
    else:  # ten seconds have passed
        nodes.wait(9.75)
        nodes.servers[1].clock.advance(0.06)
        nodes.servers[0].clock.advance(0.07)
    rooms.type(alice, other_id)
    answer = sync(bob_here, since, filter=QUIET)
    assert typing(answer, other_id) == [alice.user_id]
    since, received, ended_at_once = answer["next_batch"], [typing(answer, room_id)], []
    assert received == [None] or not is_said, "the second node does not know it yet"
    for _ in range(6):  # from now on always on the second node
        pending = poll(bob_there, since, QUIET, timeout=200)
        ended_at_once.append(pending.done)
        nodes.wait(0.2)
        received.append(typing(pending.answer.json, room_id))
        since = pending.answer.json["next_batch"]
    received = [each for each in received if each is not None]
    assert received, "the client gets the end of typing"
    assert received in ([[]], [[], []]), (
        "once by its token, and again if the notes of the nodes crossed"
    )
    for turn in range(4):
        pending = poll((bob_here, bob_there)[turn % 2], since, QUIET, timeout=200)
        ended_at_once.append(pending.done)
        nodes.wait(0.2)
        since = pending.answer.json["next_batch"]
    assert ended_at_once[-3:] == [False] * 3


def test_a_restarted_node_sends_the_end_of_typing(
    nodes: NodePair,
) -> None:
    """Otherwise its clients would show the user as typing for ever: the node has lost that state,
    and they have not."""
    alice, _ = nodes.here_and_there("alice")
    bob_here, bob = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    nodes.wait()
    rooms.type(alice, room_id)
    nodes.wait(0.2)
    answer = sync(bob, filter=QUIET)
    assert typing(answer, room_id) == [alice.user_id]
    nodes.restart_second()
    waiting = poll(nodes.there(bob_here), answer["next_batch"], QUIET)
    for _ in range(14):
        nodes.wait(1.0)
    assert typing(waiting.answer.json, room_id) == []


def test_a_restarted_node_knows_who_types_on_another(nodes: NodePair) -> None:
    alice, alice_there = nodes.here_and_there("alice")
    bob_here, _ = nodes.here_and_there("bob")
    room_id, other_id = rooms.create(alice, bob_here), rooms.create(alice, bob_here)
    nodes.wait()
    rooms.type(alice, room_id)  # for ten seconds
    rooms.type(alice_there, other_id)
    nodes.wait(4)
    nodes.restart_second()
    client = SlidingClient(
        nodes.there(bob_here),
        lists={"all": a_list([0, 9])},
        extensions={"typing": {"enabled": True}},
    )
    client.sync()
    waiting, polling = (
        client.wait(),
        poll(nodes.there(bob_here), sync(nodes.there(bob_here))["next_batch"], QUIET),
    )
    nodes.wait(0.2)
    assert typing(polling.answer.json, room_id) == [alice.user_id]
    assert typing(polling.answer.json, other_id) is None, (
        "the node that received it has lost it, and it ends soon"
    )
    assert sliding_typing(waiting.answer.json, room_id) == [alice.user_id]
    nodes.wait(5)
    assert typing(sync(nodes.there(bob_here)), room_id) == [alice.user_id]
    nodes.wait(1.5)
    assert [typing(sync(user), room_id) for user in (bob_here, nodes.there(bob_here))] == [
        None,
        None,
    ]


def test_clients_of_a_dead_node_get_the_end_from_the_other(nodes: NodePair) -> None:
    """This also holds if neither node knows any more that the user was typing."""
    alice, _ = nodes.here_and_there("alice")
    bob_here, _ = nodes.here_and_there("bob")
    room_id = rooms.create(alice, bob_here)
    nodes.wait()
    nodes.end_first()
    rooms.type(alice, room_id)
    answer = sync(bob_here, filter=QUIET)
    assert typing(answer, room_id) == [alice.user_id]
    nodes.restart_second()
    answer = sync(nodes.there(bob_here), answer["next_batch"], filter=QUIET)
    assert typing(answer, room_id) == []
