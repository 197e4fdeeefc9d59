"""A withdrawn invite and a refused knock are removed from the out-of-room memberships."""

from typing import Any

from federation.protocol.ids import EventID
from tests.helpers.federated_rooms import NORTH, SOUTH, Side, create_room
from tests.helpers.network import Network


def invited(user: Any) -> list[str]:
    rooms = user.get("/_matrix/client/v3/sync").json.get("rooms", {})
    return list(rooms.get("invite", {}))


def knocked(user: Any) -> list[str]:
    rooms = user.get("/_matrix/client/v3/sync").json.get("rooms", {})
    return list(rooms.get("knock", {}))


async def test_an_invite_is_withdrawn(network: Network) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(alice, preset="private_chat")
    path = f"/_matrix/client/v3/rooms/{room_id}"
    assert alice.post(f"{path}/invite", {"user_id": bob.user_id}).status == 200
    assert invited(bob) == [room_id]

    assert alice.post(f"{path}/kick", {"user_id": bob.user_id}).status == 200
    taken_back = (await north.last(room_id))[0]
    answer = await north.push(SOUTH, [taken_back.pdu])

    assert answer == {"pdus": {taken_back.event_id: {}}}
    assert invited(bob) == []
    repeated = await north.push(SOUTH, [taken_back.pdu])
    assert "error" in repeated["pdus"][taken_back.event_id]


async def test_an_event_that_does_not_cite_the_invite_cannot_withdraw_it(network: Network) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(alice, preset="private_chat")
    path = f"/_matrix/client/v3/rooms/{room_id}"
    assert alice.post(f"{path}/invite", {"user_id": bob.user_id}).status == 200
    guess = await north.build_next(
        room_id,
        alice.user_id,
        "m.room.member",
        {"membership": "leave"},
        bob.user_id,
        auth=[EventID("$guess")],
    )
    unsigned = {
        **(
            await north.build_next(
                room_id, alice.user_id, "m.room.member", {"membership": "leave"}, bob.user_id
            )
        ).pdu,
        "signatures": {},
    }

    for pdu in (guess.pdu, unsigned):
        answer = await north.push(SOUTH, [pdu])
        assert all("error" in result for result in answer["pdus"].values())
    assert invited(bob) == [room_id]


async def test_a_knock_is_refused(network: Network) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    rule = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room_id = create_room(alice, preset="private_chat", initial_state=[rule])
    assert bob.post(f"/_matrix/client/v3/knock/{room_id}?via={NORTH}").status == 200
    assert knocked(bob) == [room_id]

    assert (
        alice.post(f"/_matrix/client/v3/rooms/{room_id}/kick", {"user_id": bob.user_id}).status
        == 200
    )
    refused = (await north.last(room_id))[0]
    assert await north.push(SOUTH, [refused.pdu]) == {"pdus": {refused.event_id: {}}}

    assert knocked(bob) == []
