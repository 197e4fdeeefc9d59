"""The server is removed from a room while its state is partial: other servers no longer return the
missing state.

spec: server-server-api#server-access-control-lists-acls; MSC3902
"""

import pytest

from federation.rooms.partial_state.completion import ABANDONED_PAUSE
from federation.rooms.partial_state.state_sources import MAX_WAIT_MS
from tests.helpers.clocks import pass_time
from tests.helpers.large_rooms import (
    MEMBERS,
    complete,
    is_whole,
    large_room,
    lazily,
    member,
    same_state,
    send_as_member,
)
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, join_via, members
from tests.helpers.room_actions import (
    V3,
    get_state,
    membership,
    ok,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import User

A_WHILE = 20.0
"""Seconds in which everybody has refused often enough."""
NO_NAME = {"name": "tea"}
"""The response to a join of a room with a name has hardly any members."""


async def denied(network: Network) -> tuple[User, User, str]:
    """Let Bob join a room with partial state; its ACL denies his server before it has the rest."""
    alice, bob, room_id = await large_room(network, **NO_NAME)
    ok(join_via(bob, room_id, NORTH))
    network.settle()
    set_state(alice, room_id, "m.room.server_acl", {"allow": ["*"], "deny": [SOUTH]})
    network.settle()
    complete(network)
    assert not is_whole(bob, room_id)
    return alice, bob, room_id


@pytest.mark.parametrize("path", ["members", "joined_members", "state"])
async def test_a_denied_server_answers_with_partial_state(network: Network, path: str) -> None:
    _alice, bob, room_id = await denied(network)
    waiting = bob.start("GET", room_path(room_id, path))
    assert not waiting.done

    pass_time(network, A_WHILE, A_WHILE / 10)

    assert waiting.answer.status == 200
    assert bob.user_id in str(waiting.answer.json)
    assert bob.get(room_path(room_id, path)).json == waiting.answer.json
    assert not is_whole(bob, room_id)


async def test_eager_clients_get_a_room_that_cannot_be_completed(network: Network) -> None:
    _alice, bob, room_id = await denied(network)
    before = ok(bob.get(f"{V3}/sync"))
    assert room_id not in before.get("rooms", {}).get("join", {})

    pass_time(network, A_WHILE, A_WHILE / 10)

    room = ok(bob.get(f"{V3}/sync?since={before['next_batch']}"))["rooms"]["join"][room_id]
    assert bob.user_id in {
        event.get("state_key") for event in [*room["state"]["events"], *room["timeline"]["events"]]
    }


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_server_that_is_allowed_again_completes_the_room(
    network: Network, restarts: bool
) -> None:
    alice, bob, room_id = await denied(network)
    pass_time(network, A_WHILE, A_WHILE / 10)
    asked = len(network.log)
    pass_time(network, ABANDONED_PAUSE / 2, ABANDONED_PAUSE / 2 / 10)
    assert not [uri for _, _, _, uri in network.log[asked:] if "/state_ids/" in uri]
    since = lazily(bob)["next_batch"]
    set_state(alice, room_id, "m.room.server_acl", {"allow": ["*"], "deny": []})
    network.settle()
    if restarts:
        bob.server = network.rebuild(SOUTH)
        network.settle()

    pass_time(network, ABANDONED_PAUSE, ABANDONED_PAUSE / 10)

    assert is_whole(bob, room_id)
    assert len(members(bob, room_id)) == MEMBERS + 2
    assert (
        lazily(bob, since)["rooms"]["join"][room_id]["summary"]["m.joined_member_count"]
        == MEMBERS + 2
    )
    await send_as_member(alice.server, room_id, 7, "welcome back")
    say(bob, room_id, "rahmat")
    network.settle()
    await same_state(alice, bob, room_id)


async def test_a_banned_users_server_answers_with_partial_state(network: Network) -> None:
    alice, bob, room_id = await large_room(network, **NO_NAME)
    ok(join_via(bob, room_id, NORTH))
    network.cut(NORTH, SOUTH)
    ok(membership(alice, room_id, "ban", bob))
    network.settle()
    await alice.server.app.federation_sender.sender.stop()
    network.mend(NORTH, SOUTH)
    complete(network)
    waiting = bob.start("GET", room_path(room_id, "members"))

    pass_time(network, A_WHILE, A_WHILE / 10)

    assert waiting.answer.status == 200
    assert get_state(bob, room_id, "m.room.member", bob.user_id)["membership"] == "join"


@pytest.mark.parametrize("action", ["kick", "ban"])
async def test_a_removal_is_applied_without_its_past(network: Network, action: str) -> None:
    alice, bob, room_id = await large_room(network)
    ok(join_via(bob, room_id, NORTH))
    network.settle()
    network.cut(NORTH, SOUTH)
    for number in range(60):
        await send_as_member(alice.server, room_id, number % MEMBERS, "you do not hear this")
    ok(membership(alice, room_id, action, bob))
    network.settle()
    network.mend(NORTH, SOUTH)
    complete(network)

    pass_time(network, 3600, 3600 / 10)

    expected = "ban" if action == "ban" else "leave"
    assert members(bob, room_id)[bob.user_id] == expected
    assert room_id not in ok(bob.get(f"{V3}/joined_rooms"))["joined_rooms"]
    if action == "kick":
        ok(join_via(bob, room_id, NORTH))
        pass_time(network, A_WHILE, A_WHILE / 10)
        assert is_whole(bob, room_id)
        await same_state(alice, bob, room_id)


async def test_requests_stop_waiting_when_all_servers_are_gone(network: Network) -> None:
    _alice, bob, room_id = await large_room(network, **NO_NAME)
    ok(join_via(bob, room_id, NORTH))
    network.cut(NORTH, SOUTH)
    complete(network)
    pass_time(network, 3600, 3600 / 10)
    late = bob.start("GET", room_path(room_id, "members"))
    pass_time(network, 60, 60 / 10)
    assert refused(late.answer) == (504, "M_UNKNOWN")

    pass_time(network, MAX_WAIT_MS / 1000, MAX_WAIT_MS / 1000 / 10)

    assert member(33) not in members(bob, room_id)
    network.mend(NORTH, SOUTH)
    pass_time(network, ABANDONED_PAUSE, ABANDONED_PAUSE / 10)
    assert member(33) in members(bob, room_id)
