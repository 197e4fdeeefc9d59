"""Joins of large rooms with partial state, and its completion.

spec: server-server-api#put_matrixfederationv2send_joinroomideventid; MSC3706, MSC3902, MSC3943
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from federation.peers.client import RefusedByRemote
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.ids import RoomID, ServerName
from federation.rooms.event_drafts import Draft
from federation.rooms.partial_rooms import MAX_WAIT
from tests.helpers.federated_rooms import two_users
from tests.helpers.large_rooms import (
    LAZY,
    MEMBERS,
    POWERS,
    complete,
    fill,
    is_whole,
    large_room,
    lazily,
    member,
    messages,
    same_state,
    send_as_member,
)
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, WEST, join_via, members
from tests.helpers.room_actions import (
    V3,
    create,
    get_state,
    leave,
    membership,
    ok,
    refused,
    room_path,
    say,
)
from tests.helpers.server import TestServer, User


@pytest.mark.parametrize("version", ["6", "10", "11", "12"])
async def test_a_partial_room_is_used_at_once_and_completed_later(
    network: Network, version: str
) -> None:
    alice, bob, room_id = await large_room(network, room_version=version, name="tea")

    ok(join_via(bob, room_id, NORTH))

    assert not is_whole(bob, room_id)
    assert get_state(bob, room_id, "m.room.name") == {"name": "tea"}
    say(bob, room_id, "salom")
    network.settle()
    await send_as_member(alice.server, room_id, 7, "va alaykum")
    network.settle()
    room = lazily(bob)["rooms"]["join"][room_id]
    texts = [event["content"].get("body") for event in room["timeline"]["events"]]
    assert texts[-2:] == ["salom", "va alaykum"]
    received = {
        event["state_key"] for event in room["state"]["events"] if event["type"] == "m.room.member"
    }
    assert member(7) in received
    assert len(received) < MEMBERS
    assert [event["content"]["body"] for event in messages(alice, room_id)] == [
        "va alaykum",
        "salom",
    ]

    network.start_completing()
    network.settle()

    assert is_whole(bob, room_id)
    assert len(members(bob, room_id)) == MEMBERS + 2
    await same_state(alice, bob, room_id)


async def test_eager_clients_get_the_room_once_it_is_complete(
    network: Network,
) -> None:
    _alice, bob, room_id = await large_room(network)
    before = ok(bob.get(f"{V3}/sync"))["next_batch"]
    ok(join_via(bob, room_id, NORTH))
    say(bob, room_id, "salom")

    held_back = ok(bob.get(f"{V3}/sync?since={before}"))
    assert room_id not in held_back.get("rooms", {}).get("join", {})
    assert room_id not in ok(bob.get(f"{V3}/sync")).get("rooms", {}).get("join", {})
    complete(network)

    room = ok(bob.get(f"{V3}/sync?since={held_back['next_batch']}"))["rooms"]["join"][room_id]
    events = [*room["state"]["events"], *room["timeline"]["events"]]
    assert (
        len({event["state_key"] for event in events if event["type"] == "m.room.member"})
        == MEMBERS + 2
    )
    assert room["summary"]["m.joined_member_count"] == MEMBERS + 2
    assert "salom" in [event["content"].get("body") for event in room["timeline"]["events"]]


async def test_lazy_clients_get_the_member_count(network: Network) -> None:
    _alice, bob, room_id = await large_room(network)
    ok(join_via(bob, room_id, NORTH))
    first = lazily(bob)
    assert first["rooms"]["join"][room_id]["summary"]["m.joined_member_count"] < MEMBERS
    waiting = bob.start("GET", f"{V3}/sync?filter={LAZY}&timeout=30000&since={first['next_batch']}")
    assert not waiting.done

    complete(network)

    room = waiting.answer.json["rooms"]["join"][room_id]
    assert room["summary"]["m.joined_member_count"] == MEMBERS + 2
    assert room["timeline"]["events"] == []


def sliding(user: User, required: list[list[str]], pos: str = "") -> Any:
    body = {
        "conn_id": required[0][1].strip("$*"),
        "lists": {"all": {"ranges": [[0, 9]], "timeline_limit": 5, "required_state": required}},
    }
    path = f"/_matrix/client/unstable/org.matrix.simplified_msc3575/sync{pos and '?pos=' + pos}"
    return ok(user.post(path, body))


async def test_sliding_sync_shows_a_room_with_partial_state(network: Network) -> None:
    _alice, bob, room_id = await large_room(network)
    ok(join_via(bob, room_id, NORTH))
    lazy = [["m.room.member", "$LAZY"], ["m.room.name", ""]]
    eager = [["m.room.member", "*"]]

    first = sliding(bob, lazy)
    assert first["rooms"][room_id]["joined_count"] < MEMBERS
    assert room_id not in sliding(bob, eager)["rooms"]
    complete(network)

    assert sliding(bob, lazy, first["pos"])["rooms"][room_id]["joined_count"] == MEMBERS + 2
    received = sliding(bob, eager)["rooms"][room_id]["required_state"]
    assert len(received) == MEMBERS + 2


Asked = Callable[[User, str], str]


@pytest.mark.parametrize(
    "path",
    [
        lambda room_id: room_path(room_id, "members"),
        lambda room_id: room_path(room_id, "joined_members"),
        lambda room_id: room_path(room_id, "state"),
        lambda room_id: room_path(room_id, "state", "m.room.member", member(33)),
    ],
)
async def test_requests_that_need_the_members_wait(
    network: Network, path: Callable[[str], str]
) -> None:
    _alice, bob, room_id = await large_room(network)
    ok(join_via(bob, room_id, NORTH))
    waiting = bob.start("GET", path(room_id))
    late = bob.start("GET", path(room_id))
    assert not waiting.done

    complete(network)

    assert waiting.answer.status == late.answer.status == 200
    assert waiting.answer.json == ok(bob.get(path(room_id)))


async def test_waiting_requests_time_out(network: Network) -> None:
    _alice, bob, room_id = await large_room(network)
    ok(join_via(bob, room_id, NORTH))
    waiting = bob.start("GET", room_path(room_id, "members"))

    network.clock.advance(MAX_WAIT)

    assert refused(waiting.answer) == (504, "M_UNKNOWN")


async def test_memberships_of_others_are_changed_once_they_are_known(network: Network) -> None:
    alice, bob, room_id = await large_room(
        network, room_version="11", power_level_content_override={"users": POWERS}
    )
    carol = network.servers[SOUTH].register("carol")
    ok(join_via(bob, room_id, NORTH))
    kick = bob.start("POST", room_path(room_id, "kick"), {"user_id": member(33)})
    ban = bob.start("POST", room_path(room_id, "ban"), {"user_id": member(34)})
    invite = bob.start("POST", room_path(room_id, "invite"), {"user_id": carol.user_id})
    assert not kick.done
    assert not ban.done
    assert not invite.done

    complete(network)

    assert invite.answer.status == ban.answer.status == kick.answer.status == 200
    assert get_state(alice, room_id, "m.room.member", member(33))["membership"] == "leave"
    assert get_state(alice, room_id, "m.room.member", member(34))["membership"] == "ban"


async def test_a_second_local_user_joins_through_another_server(
    network: Network,
) -> None:
    alice, bob, room_id = await large_room(network)
    carol = network.servers[SOUTH].register("carol")
    ok(join_via(bob, room_id, NORTH))
    say(bob, room_id, "salom")

    assert ok(carol.post(f"{V3}/join/{room_id}", {})) == {"room_id": room_id}

    assert not is_whole(carol, room_id)
    say(carol, room_id, "va alaykum")
    complete(network)
    assert members(alice, room_id)[carol.user_id] == "join"
    assert {event["content"]["body"] for event in messages(alice, room_id)} == {
        "salom",
        "va alaykum",
    }
    await same_state(alice, bob, room_id)


async def test_a_second_local_user_joins_after_missed_events(
    network: Network,
) -> None:
    alice, bob, room_id = await large_room(network)
    carol = network.servers[SOUTH].register("carol")
    ok(join_via(bob, room_id, NORTH))
    network.cut(NORTH, SOUTH)
    say(alice, room_id, "you do not hear this")
    network.mend(NORTH, SOUTH)

    assert ok(carol.post(f"{V3}/join/{room_id}", {})) == {"room_id": room_id}

    complete(network)
    assert members(alice, room_id)[carol.user_id] == "join"
    await same_state(alice, bob, room_id)


async def test_a_second_local_user_joins_once_the_state_is_complete(network: Network) -> None:
    alice, bob, room_id = await large_room(network)
    carol, dora = (network.servers[SOUTH].register(name) for name in ("carol", "dora"))
    ok(membership(alice, room_id, "ban", dora))
    ok(join_via(bob, room_id, NORTH))
    network.cut(NORTH, SOUTH)
    carols = carol.start("POST", f"{V3}/join/{room_id}", {})
    doras = dora.start("POST", f"{V3}/join/{room_id}", {})
    assert not carols.done
    network.mend(NORTH, SOUTH)

    complete(network)

    assert carols.answer.status == 200
    assert refused(doras.answer) == (403, "M_FORBIDDEN")
    assert members(alice, room_id)[carol.user_id] == "join"


async def test_our_events_reach_all_servers_in_the_room(network: Network) -> None:
    _alice, bob, room_id = await large_room(network)
    wanda = network.add(WEST).register("wanda")
    ok(join_via(wanda, room_id, NORTH))
    complete(network)
    network.servers[SOUTH].app.federation_receiver.completions.stop()
    ok(join_via(bob, room_id, NORTH))

    say(bob, room_id, "salom")
    network.settle()

    assert not is_whole(bob, room_id)
    assert [event["content"]["body"] for event in messages(wanda, room_id)] == ["salom"]


async def test_partial_state_is_not_served(network: Network) -> None:
    alice, bob, room_id = await large_room(network)
    carol = network.add(WEST).register("carol")
    ok(join_via(bob, room_id, NORTH))
    event_id = say(bob, room_id, "salom")
    network.settle()

    assert refused(join_via(carol, room_id, SOUTH)) == (404, "M_NOT_FOUND")
    for path in ("state", "state_ids"):
        answer = await ask(
            alice.server, SOUTH, f"/_matrix/federation/v1/{path}/{quote(room_id)}", event_id
        )
        assert answer == (404, "M_NOT_FOUND")
    complete(network)
    ok(join_via(carol, room_id, SOUTH))


async def ask(server: TestServer, other: str, path: str, event_id: str) -> tuple[int, str]:
    """Return the refusal of a request to another server."""
    try:
        await server.app.peers.requests.get(ServerName(other), path, [("event_id", event_id)])
    except RefusedByRemote as refusal:
        return refusal.status, refusal.errcode
    raise AssertionError("it was answered")


async def test_completion_continues_after_a_restart(network: Network) -> None:
    alice, bob, room_id = await large_room(network)
    ok(join_via(bob, room_id, NORTH))
    say(bob, room_id, "salom")
    network.cut(NORTH, SOUTH)
    complete(network)
    assert not is_whole(bob, room_id)

    bob.server = network.rebuild(SOUTH)
    network.mend(NORTH, SOUTH)
    network.clock.advance(5)
    network.settle()

    assert is_whole(bob, room_id)
    assert [event["content"]["body"] for event in messages(bob, room_id)] == ["salom"]
    say(bob, room_id, "yana")
    network.settle()
    await same_state(alice, bob, room_id)


async def test_completion_is_retried_with_other_servers(network: Network) -> None:
    _alice, bob, room_id = await large_room(network)
    wanda = network.add(WEST).register("wanda")
    ok(join_via(wanda, room_id, NORTH))
    complete(network)
    network.servers[SOUTH].app.federation_receiver.completions.stop()
    ok(join_via(bob, room_id, NORTH))
    network.settle()
    network.cut(NORTH, SOUTH)
    network.cut(WEST, SOUTH)
    network.servers[SOUTH].app.federation_receiver.completions.start()
    network.settle()
    assert not is_whole(bob, room_id)
    network.mend(WEST, SOUTH)

    network.clock.pump([5.0] * 3)
    network.settle()

    assert is_whole(bob, room_id)
    await same_state(wanda, bob, room_id)


async def test_completion_respects_retry_after(
    network: Network,
) -> None:
    """And nobody gives up waiting for it meanwhile."""
    _, bob, room_id = await large_room(network)
    asked: list[float] = []
    begun = network.clock.seconds()

    def be_busy(to: ServerName, request: WireRequest) -> WireResponse | None:
        if to != NORTH or "/state" not in request.uri:
            return None
        asked.append(network.clock.seconds() - begun)
        return WireResponse(429, {"retry-after": "600"}, b"{}")

    network.interceptors.append(be_busy)
    ok(join_via(bob, room_id, NORTH))
    complete(network)
    for _ in range(58):
        network.clock.advance(10)
    assert len(asked) == 1
    network.interceptors.clear()
    for _ in range(60):
        network.clock.advance(10)
    network.settle()
    assert is_whole(bob, room_id)


async def joined_while_cut(network: Network, count: int) -> tuple[User, User, User, str]:
    """Wanda comes into a room while the way to another server in it is cut, whose keys hers has
    never seen."""
    alice, bob = two_users(network)
    wanda = network.add(WEST).register("wanda")
    network.start_sending()
    network.start_completing()
    room_id = create(alice, preset="public_chat")
    await fill(alice.server, room_id, count)
    ok(join_via(bob, room_id, NORTH))
    network.settle()
    network.cut(SOUTH, WEST)
    ok(join_via(wanda, room_id, NORTH))
    network.settle()
    assert is_whole(wanda, room_id)
    assert bob.user_id not in seen_by(wanda, room_id)
    return alice, bob, wanda, room_id


def seen_by(user: User, room_id: str) -> set[str]:
    """Return the members of a room that a user sees."""
    return {event["state_key"] for event in ok(user.get(room_path(room_id, "members")))["chunk"]}


@pytest.mark.parametrize("count", [2, MEMBERS])
async def test_an_unverified_member_is_added_when_their_server_is_back(
    network: Network, count: int
) -> None:
    alice, bob, wanda, room_id = await joined_while_cut(network, count)
    before = ok(wanda.get("/_matrix/client/v3/sync"))
    network.clock.pump([60.0] * 10)
    assert bob.user_id not in seen_by(wanda, room_id)
    network.mend(SOUTH, WEST)

    network.clock.pump([60.0] * 30)
    network.settle()

    await same_state(alice, wanda, room_id)
    update = ok(wanda.get(f"/_matrix/client/v3/sync?since={before['next_batch']}"))["rooms"][
        "join"
    ][room_id]
    assert bob.user_id in {event.get("state_key") for event in update["state"]["events"]}
    say(wanda, room_id, "salom")
    network.settle()
    say(bob, room_id, "va alaykum")
    network.clock.pump([60.0] * 10)  # the pause after failed tries of any server is over
    for user in (alice, bob, wanda):
        assert {event["content"]["body"] for event in messages(user, room_id)} == {
            "salom",
            "va alaykum",
        }


@pytest.mark.parametrize("count", [2, MEMBERS])
async def test_an_unverified_member_is_added_with_their_next_event(
    network: Network, count: int
) -> None:
    alice, bob, wanda, room_id = await joined_while_cut(network, count)
    wanda.server.app.federation.unverified_events.stop()
    say(bob, room_id, "is anybody there?")  # upon a past that wanda's server has as well
    say(alice, room_id, "yes")
    network.settle()
    network.mend(SOUTH, WEST)

    network.clock.pump([60.0] * 30)
    say(bob, room_id, "good")
    network.clock.pump([60.0] * 10)

    assert {event["content"]["body"] for event in messages(wanda, room_id)} == {
        "is anybody there?",
        "yes",
        "good",
    }
    await same_state(alice, wanda, room_id)


async def test_a_member_who_cannot_be_verified_is_left_out(network: Network) -> None:
    _alice, bob, wanda, room_id = await joined_while_cut(network, 2)
    for _ in range(24 * 20):
        network.clock.advance(3600)
    network.settle()
    asked = [entry for entry in network.log if entry[0] == WEST and entry[1] == SOUTH]

    for _ in range(24):
        network.clock.advance(3600)

    assert [entry for entry in network.log if entry[0] == WEST and entry[1] == SOUTH] == asked
    assert bob.user_id not in seen_by(wanda, room_id)


async def test_a_user_who_leaves_before_completion_keeps_the_partial_room(network: Network) -> None:
    alice, bob, room_id = await large_room(network)
    ok(join_via(bob, room_id, NORTH))
    leave(bob, room_id)
    complete(network)

    assert ok(bob.get(room_path(room_id, "members")))["chunk"]
    assert get_state(alice, room_id, "m.room.member", bob.user_id)["membership"] == "leave"
    ok(join_via(bob, room_id, NORTH))
    network.settle()
    assert is_whole(bob, room_id)
    await same_state(alice, bob, room_id)


@pytest.mark.parametrize("is_abandoned", [False, True])
async def test_a_user_rejoins_a_partial_room_through_others(
    network: Network, is_abandoned: bool
) -> None:
    alice, bob, room_id = await large_room(
        network, name="tea"
    )  # the response for a room with a name has no members
    ok(join_via(bob, room_id, NORTH))
    leave(bob, room_id)
    network.settle()
    if is_abandoned:
        complete(network)

    ok(join_via(bob, room_id, NORTH))
    network.settle()

    assert get_state(alice, room_id, "m.room.member", bob.user_id)["membership"] == "join"
    complete(network)
    await same_state(alice, bob, room_id)


async def test_a_user_kicked_before_completion_is_out(network: Network) -> None:
    alice, bob, room_id = await large_room(network)
    ok(join_via(bob, room_id, NORTH))
    ok(membership(alice, room_id, "kick", bob))
    network.settle()

    assert "rooms" not in lazily(bob)
    complete(network)
    assert ok(bob.get(room_path(room_id, "members")))["chunk"]


async def test_members_who_left_while_we_were_away_are_removed(network: Network) -> None:
    alice, bob, room_id = await large_room(network)
    network.start_completing()
    ok(join_via(bob, room_id, NORTH))
    network.settle()
    leave(bob, room_id)
    network.settle()
    drafts = [
        Draft("m.room.member", member(n), {"membership": "leave"}, member(n)) for n in range(10)
    ]
    await alice.server.app.room_engine.engine.send(RoomID(room_id), drafts)

    ok(join_via(bob, room_id, NORTH))
    network.settle()

    joined = ok(bob.get(room_path(room_id, "joined_members")))["joined"]
    assert len(joined) == MEMBERS - 10 + 2
    await same_state(alice, bob, room_id)


async def test_small_rooms_come_with_complete_state(network: Network) -> None:
    alice, bob = two_users(network)
    room_id = create(alice, preset="public_chat")
    ok(join_via(bob, room_id, NORTH))
    assert is_whole(bob, room_id)


async def test_partial_joins_can_be_disabled(network: Network) -> None:
    alice = network.add(NORTH).register("alice")
    bob = network.add(SOUTH, "federation: {partial_state_joins: false}\n").register("bob")
    room_id = create(alice, preset="public_chat")
    await fill(alice.server, room_id)
    ok(join_via(bob, room_id, NORTH))
    assert is_whole(bob, room_id)
    assert len(members(bob, room_id)) == MEMBERS + 2


async def test_the_metric_counts_rooms_with_partial_state(network: Network) -> None:
    _alice, bob, room_id = await large_room(network)
    ok(join_via(bob, room_id, NORTH))
    network.cut(NORTH, SOUTH)
    complete(network)
    assert gauge(bob.server) == 1
    network.mend(NORTH, SOUTH)
    network.clock.advance(5)
    network.settle()
    assert gauge(bob.server) == 0


def gauge(server: TestServer) -> float | None:
    return server.registry.get_sample_value("mahalla_federation_partial_rooms")
