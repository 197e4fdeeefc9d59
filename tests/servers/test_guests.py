"""Guests, whom each server holds to what rooms say of guests. spec: client-server-api#guest-access"""

from tests.helpers.handshakes import NORTH, SOUTH, join_via, members
from tests.helpers.network import Network
from tests.helpers.server import User
from tests.helpers.talk import V3, create, join, ok, set_state


def test_guests_go_when_somebody_elsewhere_says_that_there_shall_be_none(network: Network) -> None:
    network.start_sending()
    north, south = network.add(NORTH), network.add(SOUTH)
    alice, bob = north.register("alice"), south.register("bob")
    guest = User(south, ok(south.post(f"{V3}/register?kind=guest", {})))
    access = {"type": "m.room.guest_access", "content": {"guest_access": "can_join"}}
    room_id = create(alice, preset="public_chat", initial_state=[access])
    ok(join_via(bob, room_id, NORTH))
    join(guest, room_id)
    network.settle()
    assert members(alice, room_id)[guest.user_id] == "join"
    set_state(alice, room_id, "m.room.guest_access", {"guest_access": "forbidden"})
    network.settle()
    south.app.start_jobs()
    south.clock.advance(60)
    network.settle()
    for user in (alice, bob):
        assert {name: members(user, room_id)[name] for name in (guest.user_id, bob.user_id)} == {
            guest.user_id: "leave",
            bob.user_id: "join",
        }
