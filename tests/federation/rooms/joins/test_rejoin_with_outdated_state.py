"""A user rejoins through a server with all events: nothing of our outdated state of the room
comes back."""

import pytest

from federation.protocol.ids import EventID, RoomID
from tests.helpers.federated_rooms import Side
from tests.helpers.large_rooms import same_state
from tests.helpers.network import Fate, Network, Transfer
from tests.helpers.remote_membership import NORTH, SOUTH, WEST, join_via, members
from tests.helpers.room_actions import create, get_state, membership, ok, say, set_state


def lose_between_north_and_west(transfer: Transfer) -> Fate:
    is_theirs = {transfer.origin, transfer.destination} == {NORTH, WEST}
    return Fate.IS_LOST if is_theirs and "/send/" in transfer.request.uri else Fate.ARRIVES


@pytest.mark.parametrize("version", ["2", "6", "11", "12"])
async def test_outdated_state_does_not_come_back_with_a_rejoin(
    network: Network, version: str
) -> None:
    """When we were put out, the history of the room was forked."""
    network.start_sending()
    north, west, south = network.add(NORTH), network.add(WEST), network.add(SOUTH)
    alice, wanda = north.register("alice"), west.register("wanda")
    bob, carol = south.register("bob"), south.register("carol")
    users = {wanda.user_id: 50} if version == "12" else {wanda.user_id: 50, alice.user_id: 100}
    powers = {"users": users}
    room_id = create(
        alice,
        preset="public_chat",
        topic="tea",
        power_level_content_override=powers,
        room_version=version,
    )
    ok(join_via(bob, room_id, NORTH))
    ok(join_via(wanda, room_id, NORTH))
    network.settle()
    network.clock.advance(1)
    set_state(wanda, room_id, "m.room.join_rules", {"join_rule": "invite"})
    network.settle()
    network.clock.advance(1)
    network.choose_fate = lose_between_north_and_west
    set_state(wanda, room_id, "m.room.topic", {"topic": "coffee"})
    network.settle()
    network.clock.advance(1)
    ok(membership(alice, room_id, "kick", bob))
    network.settle()
    assert len(await Side(south).extremities(RoomID(room_id))) == 2
    network.choose_fate = lambda _: Fate.ARRIVES
    network.clock.advance(24 * 3600)
    network.settle()
    assert get_state(alice, room_id, "m.room.topic") == {"topic": "coffee"}
    set_state(alice, room_id, "m.room.join_rules", {"join_rule": "public"})
    network.settle()
    network.clock.advance(1)

    ok(join_via(carol, room_id, NORTH))

    say(carol, room_id, "salom")
    network.settle()
    for user in (alice, wanda, carol):
        assert get_state(user, room_id, "m.room.join_rules") == {"join_rule": "public"}
        assert members(user, room_id)[carol.user_id] == "join"
    await same_state(alice, carol, room_id)


async def test_unknown_events_of_others_come_back_with_their_sender(network: Network) -> None:
    """It is not our event: a user who joins gets the state of the server they join through, and
    shares what that server receives."""
    network.start_sending()
    north, west, south = network.add(NORTH), network.add(WEST), network.add(SOUTH)
    alice, wanda = north.register("alice"), west.register("wanda")
    bob, carol = south.register("bob"), south.register("carol")
    powers = {"users": {wanda.user_id: 50}}
    room_id = create(alice, preset="public_chat", topic="tea", power_level_content_override=powers)
    ok(join_via(bob, room_id, NORTH))
    ok(join_via(wanda, room_id, NORTH))
    network.settle()
    network.clock.advance(1)
    network.choose_fate = lose_between_north_and_west
    set_state(wanda, room_id, "m.room.topic", {"topic": "coffee"})
    network.settle()
    assert get_state(bob, room_id, "m.room.topic") == {"topic": "coffee"}
    network.clock.advance(1)
    ok(membership(alice, room_id, "kick", bob))
    network.settle()
    network.cut(WEST, NORTH)
    network.cut(WEST, SOUTH)

    ok(join_via(carol, room_id, NORTH))

    said = say(carol, room_id, "salom")
    network.settle()
    assert [get_state(user, room_id, "m.room.topic")["topic"] for user in (alice, carol)] == [
        "tea",
        "tea",
    ]
    assert len((await Side(south).pdu(RoomID(room_id), EventID(said)))["prev_events"]) == 1
    network.mend(WEST, NORTH)
    network.mend(WEST, SOUTH)
    network.choose_fate = lambda _: Fate.ARRIVES
    network.clock.advance(24 * 3600)
    network.settle()
    say(wanda, room_id, "salom")
    network.settle()
    for user in (alice, wanda, carol):
        assert get_state(user, room_id, "m.room.topic") == {"topic": "coffee"}
        assert members(user, room_id)[carol.user_id] == "join"
    await same_state(alice, carol, room_id)
    await same_state(alice, wanda, room_id)
